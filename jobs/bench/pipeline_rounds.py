"""Rounds: programs taking turns over the same rows, and what was measured of each."""

from dataclasses import dataclass, field, replace

import pyarrow as pa
import torch

from jobs.bench.measure import gemm_gflops
from jobs.bench.pipeline_plan import PipelineLeg, PipelineWorkload
from jobs.bench.pipeline_trial import Bench, Trial
from jobs.bench.pipeline_work import write_input
from jobs.bench.protocol import WorkerError
from jobs.bench.suite import tell

MIN_ROWS = 16
PROBE_ROWS = 128


@dataclass
class Measured:
    """A leg's trials over so many rows, its last output, and why there are no more of them where it failed."""

    leg: PipelineLeg
    num_rows: int
    trials: list[Trial] = field(default_factory=list)
    output: pa.Table | None = None
    tried: dict[int, float] = field(default_factory=dict)
    problem: str | None = None


Key = tuple[str, int]


class Rounds:
    """Run the legs of some workloads in turn; one that several workloads have over the same rows runs once a round."""

    def __init__(self, bench: Bench, share: float) -> None:
        self._bench = bench
        self._share = share
        self.measured: dict[Key, Measured] = {}

    def of(self, workload: PipelineWorkload) -> list[Measured]:
        """Return what was measured of a workload's legs."""
        return [self.measured[self._key(workload, leg)] for leg in workload.legs]

    def prepare(self, workloads: tuple[PipelineWorkload, ...]) -> None:
        """Choose the batch sizes that are to be tried, each over a few rows."""
        chosen: dict[str, tuple[PipelineLeg, dict[int, float], str | None]] = {}
        for workload in workloads:
            for leg in workload.legs:
                if leg.name not in chosen:
                    chosen[leg.name] = self._with_best_batch(leg)
                best, tried, problem = chosen[leg.name]
                rows = self._key(workload, leg)
                self.measured.setdefault(rows, Measured(best, rows[1], tried=tried, problem=problem))

    def run(self) -> None:
        """Run one round."""
        for one in self.measured.values():
            if one.problem is not None:
                continue
            try:
                trial, one.output = self._trial(one.leg, one.num_rows)
                one.trials.append(trial)
                tell(f"{one.leg.name}, {one.num_rows} rows: {_line(trial)}")
            except WorkerError as error:
                one.problem = str(error)
                tell(f"{one.leg.name}: skipped, {error}")

    def _key(self, workload: PipelineWorkload, leg: PipelineLeg) -> Key:
        share = leg.share if workload.clock == "steady" else 1.0
        return leg.name, max(MIN_ROWS, round(workload.num_rows * share * self._share))

    def _trial(self, leg: PipelineLeg, num_rows: int) -> tuple[Trial, pa.Table]:
        source = self._bench.folder / f"articles-{num_rows}.parquet"
        write_input(source, num_rows)
        return self._bench.run(leg, source, lambda: gemm_gflops(getattr(torch, self._bench.dtype)))

    def _with_best_batch(self, leg: PipelineLeg) -> tuple[PipelineLeg, dict[int, float], str | None]:
        tried: dict[int, float] = {}
        for size in leg.batch_sizes:
            one = replace(leg, settings={**leg.settings, "batch_size": size})
            try:
                tried[size] = self._trial(one, max(MIN_ROWS, round(PROBE_ROWS * self._share)))[0].rate("steady")
            except WorkerError as error:
                return leg, tried, str(error)
        if not tried:
            return leg, tried, None
        best = max(tried, key=lambda size: tried[size])
        tell(f"{leg.name}: batch size {best} of { ({size: round(rate, 1) for size, rate in tried.items()}) } rows/s")
        return replace(leg, settings={**leg.settings, "batch_size": best}), tried, None


def _line(trial: Trial) -> str:
    return (
        f"{trial.start_s:.1f} s until the first rows, then {trial.steady_s:.1f} s ({trial.rate('steady'):.2f} rows/s; "
        f"GEMM {trial.gemm_gflops:.0f} GF/s)"
    )
