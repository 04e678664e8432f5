"""Breaker: stops a run nearly all of whose first rows fail, instead of days spent on a wrong column or a sick GPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from gptj_batch.errors import TooManyFailedError
from pipelines.prepare import Run
from pipelines.progress import Counts
from pipelines.report import EXIT_TOO_MANY_FAILED, count_errors, read_failure
from pipelines.settings import ErrorSettings

_MAX_REASONS = 3
_OVERWRITE = "start anew with output.on_exists=overwrite"
_RESCORE = "drop what this run did with --rescore new (new files only) or --rescore all (every file)"


@dataclass(frozen=True)
class Breaker:
    """What stops a run; it counts what was done before, too, or else a scheduler's tries would walk through it.

    reasons: counts the errors that were seen    start_anew: what to do once the cause is removed
    """

    limits: ErrorSettings
    reasons: Callable[[], Mapping[str, int]]
    start_anew: str
    rows_before: int = 0
    failed_before: int = 0

    @classmethod
    def of(cls, run: Run, rows_before: int) -> Self:
        """Return a run's, of which so many rows were done before. Raises OutputError for units that cannot be read."""
        limits, reasons = run.job.errors, partial(count_errors, run)
        failed = sum(reasons().values()) if rows_before and limits.stop_after is not None else 0
        return cls(limits, reasons, _OVERWRITE if run.told_in is None else _RESCORE, rows_before, failed)

    def check(self, counts: Counts) -> None:
        """Raise TooManyFailedError once `errors.stop_after` rows are done and more than `errors.stop_share` failed.

        counts: what this process has done

        Never raises while no more have failed than `errors.max_failed_rows` allows: they were expected.
        """
        limits, rows, failed = self.limits, self.rows_before + counts.rows, self.failed_before + counts.failed
        if limits.stop_after is None or rows < limits.stop_after:
            return
        if failed <= limits.stop_share * rows or limits.allows(failed, rows):
            return
        most = sorted(self.reasons().items(), key=lambda item: -item[1])[:_MAX_REASONS]
        shown = "; ".join(f"{count:,} x {reason}" for reason, count in most)
        raise TooManyFailedError(
            f"errors.stop_after: {failed:,} of the first {rows:,} rows failed, a share above errors.stop_share "
            f"({limits.stop_share:g}), so the run was stopped: {shown}. Finished rows are kept with their errors, and "
            f"count when it is started again. Remove the cause and {self.start_anew}, or, if the rows are meant to "
            "fail, set errors.stop_after=null and run again to go on"
        )


def was_stopped(output: str) -> bool:
    """Tell whether a breaker stopped the run that writes there, and nothing was done since."""
    failure = read_failure(output)
    return failure is not None and failure["exit_code"] == EXIT_TOO_MANY_FAILED
