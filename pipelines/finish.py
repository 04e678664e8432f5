"""The end of a run: nothing is missing, the parts are published, the report stands beside them."""

from typing import Any

from gptj_batch.errors import OutputError
from gptj_batch.records.progress import pending_units
from gptj_batch.records.publish import publish
from gptj_batch.tasks.base import ERROR_COLUMN, FREE_TEXT_COLUMNS
from pipelines.prepare import Run
from pipelines.progress import Counts
from pipelines.report import Report, write_report
from pipelines.report_page import write_page


def finish(run: Run, counts: Counts, seconds: float, started: float, facts: dict[str, Any]) -> Report:
    """Check that every unit is there, publish the output, and return its report.

    counts, seconds, started, facts: this run's own work, and what the replicas said of themselves

    Raises OutputError.
    """
    output = run.job.output
    missing = pending_units(output.path, run.plan)
    if len(missing):
        raise OutputError(f"{len(missing)} of {run.plan.num_units} units were not written; run the same job again")
    report = Report.of_units(run, counts, seconds, started, facts)
    write_report(run, report)
    publish(output.path, run.plan.num_units, output.target_file_mb * 2**20, output.compression, run.plan.num_rows)
    write_run_page(run, report)
    return report


def write_run_page(run: Run, report: Report) -> None:
    """Write `report.html`, without any column of free text. Raises OutputError."""
    shown = [name for name in (*run.task.adds.names, ERROR_COLUMN) if name not in FREE_TEXT_COLUMNS]
    write_page(report, [run.job.output.prefix + name for name in shown])
