"""Legs: the ways to do one workload, measured in turn, round after round."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.bench.batches import BatchOptions, sample
from jobs.bench.fleet import Fleet
from jobs.bench.protocol import Message, Worker, WorkerError
from jobs.bench.work import Numbers, Work
from jobs.bench.workloads import LegSpec, Unit, Workload

Tell = Callable[[str], None]
FIRST_WARM_SEED, PROBE_SEED = 1000, 2000
NUM_WARM_PASSES = {"ours": 2, "vllm": 2}
PROBE_BATCHES = {1: 12, 16: 2, 64: 2}


@dataclass
class Leg:
    """A leg that could be started, and what was measured of it."""

    spec: LegSpec
    worker: Worker
    loaded: Message
    probe: dict[int, float] = field(default_factory=dict)
    runs: list[Message] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    outputs: list[Numbers] = field(default_factory=list)

    def rates(self, unit: Unit) -> list[float]:
        """Return what each round reached."""
        return [amount(work, unit) / run["seconds"] for work, run in zip(self.work, self.runs, strict=True)]

    def rate(self, unit: Unit) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.rates(unit))


@dataclass(frozen=True)
class Skipped:
    """A leg that could not be measured."""

    spec: LegSpec
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is run: rounds, and the part of a workload's rows (less than 1 only to try the suite out)."""

    rounds: int
    share: float
    folder: Path

    def num_rows(self, workload: Workload, leg: LegSpec) -> int:
        """Return how many rows a leg gets."""
        rows = max(4, round(workload.num_rows * self.share))
        return rows if leg.max_rows is None else min(rows, max(4, round(leg.max_rows * self.share)))


def amount(work: Work, unit: Unit) -> int:
    """Return how much of its unit some work is."""
    return work.num_new_tokens if unit == "tokens/s" else len(work.rows)


def measure(workload: Workload, fleet: Fleet, plan: Plan, tell: Tell) -> tuple[list[Leg], list[Skipped]]:
    """Start, warm up and run all legs of a workload, in turn."""
    legs: list[Leg] = []
    skipped: list[Skipped] = []
    for spec in workload.legs:
        try:
            worker, loaded = fleet.get(workload, spec)
            leg = Leg(spec, worker, loaded)
            _warm_up(workload, leg, plan, tell)
            legs.append(leg)
        except WorkerError as error:
            skipped.append(Skipped(spec, str(error)))
            tell(f"{workload.id}  {spec.name}: skipped, {error}")
    for seed in range(plan.rounds):
        for leg in list(legs):
            try:
                _run_round(workload, leg, seed, plan)
                tell(f"{workload.id}  {leg.spec.name}: round {seed + 1}, {_line(leg, workload.unit)}")
            except WorkerError as error:
                legs.remove(leg)
                skipped.append(Skipped(leg.spec, str(error)))
                tell(f"{workload.id}  {leg.spec.name}: skipped, {error}")
    return legs, skipped


def _run_round(workload: Workload, leg: Leg, seed: int, plan: Plan) -> None:
    work = workload.make(plan.num_rows(workload, leg.spec), seed)
    run = ask_run(leg, work, plan.folder)
    leg.outputs.append(run.pop("outputs"))
    leg.runs.append(run)
    leg.work.append(work)


def ask_run(leg: Leg, work: Work, folder: Path, *, want_outputs: bool = True) -> Message:
    """Let a leg's worker do some work."""
    file = folder / "work.json"
    work.write(file)
    return leg.worker.ask(
        {"op": "run", "work": str(file), "options": leg.spec.options, "want_outputs": want_outputs}
    )


def _warm_up(workload: Workload, leg: Leg, plan: Plan, tell: Tell) -> None:
    """Run before the clock counts: choose the batch size, or let caches fill and kernels be chosen."""
    if leg.spec.batch_sizes:
        _choose_batch_size(workload, leg, plan)
        rates = ", ".join(f"{size}: {rate:.1f}" for size, rate in leg.probe.items())
        tell(f"{workload.id}  {leg.spec.name}: batch size {leg.spec.options['batch_size']} of ({rates}) {workload.unit}")
        return
    for index in range(NUM_WARM_PASSES.get(leg.spec.engine, 1)):
        work = workload.make(plan.num_rows(workload, leg.spec), FIRST_WARM_SEED + index)
        ask_run(leg, work, plan.folder, want_outputs=False)


def _choose_batch_size(workload: Workload, leg: Leg, plan: Plan) -> None:
    """Try every batch size on a few batches, and keep the best."""
    spec, work = leg.spec, workload.make(plan.num_rows(workload, leg.spec), PROBE_SEED)
    is_sorted = spec.options.get("sorted", False)
    for size in (1, *spec.batch_sizes):  # the first run of all is slower; the second of this size counts
        few = sample(work, BatchOptions(size=size, is_sorted=is_sorted), PROBE_BATCHES[size])
        leg.spec = replace(spec, options={**spec.options, "batch_size": size})
        run = ask_run(leg, few, plan.folder, want_outputs=False)
        leg.probe[size] = amount(few, workload.unit) / run["seconds"]
    best = max(leg.probe, key=lambda size: leg.probe[size])
    leg.spec = replace(spec, options={**spec.options, "batch_size": best})


def _line(leg: Leg, unit: Unit) -> str:
    run: dict[str, Any] = leg.runs[-1]
    return f"{leg.rates(unit)[-1]:.1f} {unit} in {run['seconds']:.1f} s (GEMM {run['gemm_gflops']:.0f} GF/s)"


def every(workloads: tuple[Workload, ...]) -> Iterator[tuple[Workload, LegSpec]]:
    """Yield all legs of some workloads."""
    for workload in workloads:
        for leg in workload.legs:
            yield workload, leg
