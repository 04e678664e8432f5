"""`gptj-batch report`: a run's report made again from its output."""

from dataclasses import replace

from gptj_batch.errors import ConfigError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.progress import contents
from gptj_batch.records.publish import is_complete
from pipelines.ledger import Ledger, is_incremental, read_ledger
from pipelines.report import RUN_FILE, read_failure, read_report
from pipelines.report_page import page_path, write_page

EXIT_CUT_OFF = 1


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
    if is_incremental(output):
        print(runs_summary(read_ledger(output)))
        print(report.summary())
        return report.exit_code
    report = replace(report, output=output)  # as it is called from here
    if not is_complete(output):
        print("not complete: every unit is done, but the parts are not published; run the job again to go on")
        return EXIT_CUT_OFF
    print(report.summary())
    write_page(report)
    print(f"report: {page_path(report)}")
    return report.exit_code


def runs_summary(ledger: Ledger) -> str:
    """Return a line for each run of an output that incremental runs keep."""
    lines = []
    for entry in ledger.entries:
        here = sum(file.run == entry.run for file in ledger.files.values())
        drift = "" if entry.max_psi is None else f", largest drift {entry.max_psi:.3f}"
        rescored = "" if entry.rescore is None else f", --rescore {entry.rescore}"
        lines.append(
            f"{entry.run}: {len(entry.files):,} files, {entry.rows:,} rows, {entry.failed:,} failed; rows of {here:,} "
            f"files are current{drift}{rescored}"
        )
    return "\n".join(lines)
