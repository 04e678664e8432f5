"""Legs: the ways to do one workload, measured in turn, round after round."""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from jobs.bench.batches import BatchOptions, sample
from jobs.bench.fleet import Fleet
from jobs.bench.plan import LegSpec, Plan, Unit, Workload
from jobs.bench.protocol import Message, Worker, WorkerError
from jobs.bench.work import Numbers, Work

Tell = Callable[[str], None]
FIRST_WARM_SEED, PROBE_SEED, ROUND_SEEDS = 1000, 2000, 10_000
NUM_WARM_PASSES, MIN_WARM_ROWS = 2, 64
PROBE_BATCHES = {1: 12, 16: 2, 64: 2}


@dataclass
class Leg:
    """A leg that could be started, and what was measured of it: a run per round, and the rates that it came to."""

    spec: LegSpec
    worker: Worker
    loaded: Message
    probe: dict[int, float] = field(default_factory=dict)
    runs: list[Message] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    outputs: list[Numbers] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.rates)

    def run(self, work: Work, plan: Plan, *, want_outputs: bool = True) -> Message:
        """Let the worker do some work. Raises WorkerError where it cannot."""
        file = plan.folder / "work.json"
        work.write(file)
        message = {"op": "run", "work": str(file), "options": self.spec.options, "want_outputs": want_outputs}
        return self.worker.ask(message)


@dataclass(frozen=True)
class Skipped:
    """A leg that could not be measured."""

    spec: LegSpec
    reason: str


@dataclass
class Measured:
    """What became of the legs of one workload."""

    legs: list[Leg] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def measure(workload: Workload, fleet: Fleet, plan: Plan, tell: Tell) -> Measured:
    """Start, warm up and run all legs of a workload, in turn; a leg that fails is left out of what follows."""
    measured = Measured()
    missing = workload.missing()
    for spec in workload.legs:
        try:
            if missing is not None:
                raise WorkerError(missing)
            leg = Leg(spec, *fleet.get(workload, spec))
            _warm_up(workload, leg, plan, tell)
            measured.legs.append(leg)
        except WorkerError as error:
            _skip(workload, measured, spec, error, tell)
    for number in range(workload.rounds or plan.rounds):
        for leg in list(measured.legs):
            try:
                _run_round(workload, leg, number, plan)
                tell(f"{workload.id}  {leg.spec.name}: round {number + 1}, {_line(leg, workload.unit)}")
            except WorkerError as error:
                measured.legs.remove(leg)
                _skip(workload, measured, leg.spec, error, tell)
    return measured


def amount(work: Work, unit: Unit) -> int:
    """Return how much of its unit some work is."""
    return work.num_new_tokens if unit == "tokens/s" else len(work.rows)


def check_outputs(work: Work, outputs: Numbers) -> None:
    """Raise WorkerError for an answer that has more or fewer numbers than it should, or one that is not finite."""
    for index, (row, output) in enumerate(zip(work.rows, outputs, strict=True)):
        wanted = {
            "generate": row.max_new_tokens,
            "labels": len(row.labels),
            "classify": len(outputs[0]),
            "span": 2 * (len(row.prompt) - row.first_token),
        }[work.kind]
        if len(output) != wanted:
            raise WorkerError(f"wrong output: row {index} has {len(output)} numbers, not {wanted}")
        if not all(map(math.isfinite, output)):
            raise WorkerError(f"wrong output: row {index} has numbers that are not finite")


def _run_round(workload: Workload, leg: Leg, number: int, plan: Plan) -> None:
    seconds, done = 0.0, 0
    for repeat in range(leg.spec.repeats):
        work = workload.make(plan.num_rows(workload, leg.spec), number + ROUND_SEEDS * repeat)
        run = leg.run(work, plan)
        outputs = run.pop("outputs")
        check_outputs(work, outputs)
        seconds, done = seconds + run["seconds"], done + amount(work, workload.unit)
    leg.rates.append(done / seconds)
    leg.runs.append({**run, "seconds": seconds})
    leg.work.append(work)
    leg.outputs.append(outputs)


def _warm_up(workload: Workload, leg: Leg, plan: Plan, tell: Tell) -> None:
    """Run before the clock counts: choose the batch size, or let caches fill and kernels be chosen."""
    if leg.spec.batch_sizes:
        _choose_batch_size(workload, leg, plan)
        tried = ", ".join(f"{size}: {rate:.1f}" for size, rate in leg.probe.items())
        tell(
            f"{workload.id}  {leg.spec.name}: batch size {leg.spec.options['batch_size']} of ({tried}) {workload.unit}"
        )
        return
    for index in range(NUM_WARM_PASSES):
        work = workload.make(plan.num_rows(workload, leg.spec), FIRST_WARM_SEED + index)
        leg.run(work.first(max(MIN_WARM_ROWS, len(work.rows) // 4)), plan, want_outputs=False)


def _choose_batch_size(workload: Workload, leg: Leg, plan: Plan) -> None:
    """Try every batch size on a few batches, and keep the best."""
    spec, work = leg.spec, workload.make(plan.num_rows(workload, leg.spec), PROBE_SEED)
    is_sorted = spec.options.get("sorted", False)
    for size in (spec.batch_sizes[0], *spec.batch_sizes):  # the first run of all is slow; the second of its size counts
        few = sample(work, BatchOptions(size=size, is_sorted=is_sorted), PROBE_BATCHES[size])
        leg.spec = replace(spec, options={**spec.options, "batch_size": size})
        run = leg.run(few, plan, want_outputs=False)
        leg.probe[size] = amount(few, workload.unit) / run["seconds"]
    best = max(leg.probe, key=lambda size: leg.probe[size])
    leg.spec = replace(spec, options={**spec.options, "batch_size": best})


def _skip(workload: Workload, measured: Measured, spec: LegSpec, error: WorkerError, tell: Tell) -> None:
    measured.skipped.append(Skipped(spec, str(error)))
    tell(f"{workload.id}  {spec.name}: skipped, {error}")


def _line(leg: Leg, unit: Unit) -> str:
    run = leg.runs[-1]
    return f"{leg.rates[-1]:.1f} {unit} in {run['seconds']:.1f} s (GEMM {run['gemm_gflops']:.0f} GF/s)"


def pairs(workloads: Iterable[Workload]) -> list[tuple[Workload, LegSpec]]:
    """Return all legs of some workloads, each with its workload."""
    return [(workload, leg) for workload in workloads for leg in workload.legs]
