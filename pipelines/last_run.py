"""The last run with rows of an output that incremental runs keep, judged again.

A run that finds nothing to do ends as that one, as an ordinary run does that finds its output complete. Else a
scheduler's second try, or the next night, would make a success of exit code 3.
"""

from gptj_batch.records.output import OutputFolder
from pipelines.config import Job
from pipelines.ledger import Entry, Ledger
from pipelines.report import read_report, too_many_failed
from pipelines.run_place import final_folder


def complaint(output: str, ledger: Ledger, job: Job) -> str | None:
    """Return why the last run with rows is beyond the job's limits; None where it is not, or somebody has acted.

    Somebody has where its rows were taken away, or where `--rescore` accepted them as they are.
    """
    for entry in reversed(ledger.entries):
        if entry.rows:
            reasons = _reasons(output, entry, job)
            return f"run {entry.run}, the last one with rows: {'; '.join(reasons)}" if reasons else None
        if entry.rescore is not None:
            return None
    return None


def _reasons(output: str, entry: Entry, job: Job) -> list[str]:
    folder = final_folder(output, entry.run, entry.layout)
    place = OutputFolder.at(folder)
    if not place.store.is_folder(place.root):
        return []
    rows, failed = entry.rows, entry.failed
    if folder != output and (report := read_report(folder)) is not None:
        rows, failed = report.rows, report.failed  # `gptj-batch retry` may have been there since
    reasons = [too_many_failed(failed, rows, job.errors)]
    if entry.max_psi is not None and job.drift.max_psi is not None and entry.max_psi > job.drift.max_psi:
        reasons.append(
            "its rows are not as those before were: population stability index "
            f"{entry.max_psi:.3f}, more than drift.max_psi ({job.drift.max_psi:g}) allows"
        )
    return [reason for reason in reasons if reason is not None]
