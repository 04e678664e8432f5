"""The end of a run: nothing is missing, the parts are published, the report stands beside them."""

from typing import Any

from gptj_batch.records.attempts import forget_attempts
from gptj_batch.records.beside import change_places
from gptj_batch.records.lease import Fence
from gptj_batch.records.publish import publish
from gptj_batch.records.tally import check_all_done
from pipelines.prepare import Run
from pipelines.progress import Counts
from pipelines.report import Report, write_report
from pipelines.report_page import write_page


def finish(
    run: Run, counts: Counts, seconds: float, started: float, facts: dict[str, Any], fence: Fence | None = None
) -> Report:
    """Check that every unit is there, publish the output, and return its report.

    counts, seconds, started, facts: this run's own work, and what the replicas said of themselves
    fence: what says whether the output is still this run's

    Raises OutputError, and OutputInUseError where the output is another run's by now.
    """
    check_all_done(run.folder, run.plan)
    report = Report.of_units(run, counts, seconds, started, facts)
    if fence is not None:
        fence.check()
    write_report(run, report)
    publish(run.folder, run.plan.num_units, run.job.output.form, run.plan.num_rows, run.part_groups)
    if run.is_beside:
        if fence is not None:  # publishing may have taken long
            fence.check()
        change_places(run.job.output.path)
    forget_attempts(run.job.output.path)
    write_page(report)
    return report
