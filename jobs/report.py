"""`gptj-batch report`: a run's report made again from its output."""

from dataclasses import replace

from gptj_batch.errors import ConfigError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.progress import contents
from gptj_batch.records.publish import is_complete
from pipelines.report import RUN_FILE, read_failure, read_report
from pipelines.report_page import page_path, write_page


def remake_report(output: str) -> int:
    """Print the report of an output and write its page again; return the run's exit code.

    Raises ConfigError for a folder that holds no run.
    """
    folder = OutputFolder.at(output)
    folder.store.check(folder.root)
    if contents(output) != "ours":
        raise ConfigError(f"{folder.root} is no output of gptj-batch; give the folder that a run wrote")
    report = read_report(output)
    if report is None:
        failure = read_failure(output)
        if failure is None:
            raise ConfigError(
                f"{folder.root} has no {RUN_FILE} that can be read: the run was cut off; run the job again to go on"
            )
        print(f"not complete: {failure['units_done']:,} of {failure['units']:,} units are done; {failure['reason']}")
        return int(failure["exit_code"])
    report = replace(report, output=output)  # as it is called from here
    print(report.summary())
    if is_complete(output):
        write_page(report)
        print(f"report: {page_path(report)}")
    return report.exit_code
