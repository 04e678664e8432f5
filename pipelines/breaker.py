"""Breaker: stops a run nearly all of whose first rows fail, instead of days spent on a wrong column or a sick GPU."""

from collections.abc import Callable, Mapping

from gptj_batch.errors import TooManyFailedError
from pipelines.config import ErrorSettings
from pipelines.progress import Counts

_MAX_REASONS = 3


def check_failures(counts: Counts, limits: ErrorSettings, reasons: Callable[[], Mapping[str, int]]) -> None:
    """Raise TooManyFailedError once `errors.stop_after` rows are done and more than `errors.stop_share` of them failed.

    counts: what this run has done    reasons: counts the errors that were seen

    Never raises while no more have failed than `errors.max_failed_rows` allows: they were expected.
    """
    if limits.stop_after is None or counts.rows < limits.stop_after:
        return
    if counts.failed <= limits.stop_share * counts.rows or limits.allows(counts.failed, counts.rows):
        return
    most = sorted(reasons().items(), key=lambda item: -item[1])[:_MAX_REASONS]
    shown = "; ".join(f"{count:,} x {reason}" for reason, count in most)
    raise TooManyFailedError(
        f"errors.stop_after: {counts.failed:,} of the first {counts.rows:,} rows failed, a share above "
        f"errors.stop_share ({limits.stop_share:g}), so the run was stopped: {shown}. Finished rows are kept with "
        "their errors. Remove the cause and start anew with output.on_exists=overwrite, or, if the rows are meant to "
        "fail, set errors.stop_after=null and run again to go on"
    )
