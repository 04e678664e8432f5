"""The report of a run: `run.json`, for machines and for the next run, and the summary that is printed."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_reader import read_column
from gptj_batch.records.tally import tally_units
from gptj_batch.tasks.base import ERROR_COLUMN, FREE_TEXT_COLUMNS
from pipelines.config import Job
from pipelines.lineage import prompt_hash, versions
from pipelines.prepare import Run
from pipelines.progress import Counts, duration
from pipelines.settings import ErrorSettings

RUN_FILE, CONFIG_FILE = "run.json", "config.yaml"
# Reasons may hold numbers of their row, and then no two are alike; the output's column has all of them.
MAX_REASONS = 100
EXIT_DONE, EXIT_TOO_MANY_FAILED = 0, 3


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run did; the counts of rows are the whole output's, the rest is this run's alone.

    columns: those that the task added and that may be shown
    incremental: of an incremental run, its name and what it found of the input's files
    """

    name: str
    output: str
    rows: int
    done: int
    failed: int
    exit_code: int
    reason: str
    errors: dict[str, int]
    skipped_files: list[str]
    truncated_this_run: int
    rows_this_run: int
    prompt_tokens_this_run: int
    generated_tokens_this_run: int
    seconds: float
    tokens_per_s: float
    started: str
    model: str
    model_identity: str
    prompt_sha256: str
    task: dict[str, Any]
    backend: dict[str, Any]
    versions: dict[str, str]
    columns: list[str]
    duplicates_this_run: int = 0
    incremental: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_units(cls, run: Run, counts: Counts, seconds: float, started: float, backend: dict[str, Any]) -> "Report":
        """Count the finished units' errors, from the files and not from what was said of them."""
        errors = count_errors(run)
        failed = sum(errors.values())
        rows = run.plan.num_rows
        commonest = sorted(errors.items(), key=lambda item: -item[1])[:MAX_REASONS]
        skipped = [file.path for file in run.inputs.skipped]
        report = cls(
            name=run.job.name,
            output=run.job.output.path,
            rows=rows,
            done=rows - failed,
            failed=failed,
            exit_code=EXIT_DONE,
            reason="",
            errors=dict(commonest),
            skipped_files=skipped,
            truncated_this_run=counts.truncated,
            duplicates_this_run=counts.duplicates,
            rows_this_run=counts.rows,
            prompt_tokens_this_run=counts.prompt_tokens,
            generated_tokens_this_run=counts.generated_tokens,
            seconds=round(seconds, 3),
            tokens_per_s=round(counts.tokens / max(seconds, 1e-9), 1),
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            model=run.job.model.path,
            model_identity=run.model.identity,
            prompt_sha256=prompt_hash(run.job.task),
            task=run.job.task.model_dump(mode="json"),
            backend=backend,
            columns=[
                run.job.output.prefix + name
                for name in (*run.task.adds.names, ERROR_COLUMN)
                if name not in FREE_TEXT_COLUMNS
            ],
            versions=versions(),
        )
        return report.judged(run.job.errors)

    def judged(self, limits: ErrorSettings) -> "Report":
        """Return the report with the exit code, and the reason for it, that these limits give the run."""
        reasons = [f"{len(self.skipped_files):,} input files were skipped"] if self.skipped_files else []
        if (failed := too_many_failed(self.failed, self.rows, limits)) is not None:
            reasons.insert(0, failed)
        code = EXIT_TOO_MANY_FAILED if reasons else EXIT_DONE
        return replace(self, exit_code=code, reason="; ".join(reasons) or "complete")

    @property
    def is_good(self) -> bool:
        """Tell whether the run is within its limits."""
        return self.exit_code == EXIT_DONE

    def summary(self) -> str:
        """Return the lines that end a run."""
        lines = [f"{self.rows:,} rows: {self.done:,} done, {self.failed:,} failed"]
        if self.rows_this_run:
            lines[0] += (
                f"; {self.rows_this_run:,} in this run, in {duration(self.seconds)} "
                f"({self.rows_this_run / max(self.seconds, 1e-9):,.1f} rows/s, {self.tokens_per_s:,.0f} tokens/s)"
            )
        if self.truncated_this_run:
            lines.append(f"{self.truncated_this_run:,} prompts were cut to fit the context (task.truncate)")
        if self.duplicates_this_run:
            lines.append(
                f"{self.duplicates_this_run:,} duplicates were computed once, with another row (task.deduplicate)"
            )
        most = sorted(self.errors.items(), key=lambda item: -item[1])[:5]
        lines += [f"  {count:,} x {reason}" for reason, count in most]
        lines += [f"skipped, could not be read: {path}" for path in self.skipped_files]
        if not self.is_good:
            lines.append(f"{self.reason[:1].upper()}{self.reason[1:]}: exit code {self.exit_code}")
        lines.append(f"output: {self.output}")
        return "\n".join(lines)


def too_many_failed(failed: int, rows: int, limits: ErrorSettings) -> str | None:
    """Return that more rows failed than `errors.max_failed_rows` allows; None where they did not."""
    if limits.allows(failed, rows):
        return None
    allowed = f"errors.max_failed_rows ({limits.max_failed_rows:g}) allows"
    return f"{failed:,} of {rows:,} rows failed, more than {allowed}"


def count_errors(run: Run) -> dict[str, int]:
    """Return how often each error stands in the finished units, or in the parts where these are published.

    Raises OutputError for a unit that is not what was planned.
    """
    if OutputFolder.at(run.folder).unit_indices():
        return tally_units(run.folder, run.plan, run.error_column)
    return count_errors_of_parts(run.folder, run.error_column)


def count_errors_of_parts(output: str, error_column: str) -> dict[str, int]:
    """Return how often each error stands in the parts that are there."""
    folder, counts = OutputFolder.at(output), dict[str, int]()
    for file in folder.parts():
        column = read_column(folder, file, error_column)
        if column.null_count < len(column):
            for entry in column.drop_null().value_counts().to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts


def write_failure(run: Run, exit_code: int, reason: str) -> None:
    """Leave in `run.json` how a run ended that did not finish: Ray Jobs turn every exit code into 1.

    Does nothing where not even that can be written.
    """
    failure = {
        "name": run.job.name,
        "output": run.told_in or run.job.output.path,
        "rows": run.plan.num_rows,
        "units": run.plan.num_units,
        "units_done": len(OutputFolder.at(run.folder).unit_indices()),
        "exit_code": exit_code,
        "reason": reason,
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    for folder in map(OutputFolder.at, run.failure_folders):
        with suppress(OutputError), folder.whole_file(folder.private / RUN_FILE) as staged:
            staged.write_text(json.dumps(failure, indent=2) + "\n", encoding="utf-8")


def write_report(run: Run, report: Report) -> None:
    """Write `run.json` and the resolved `config.yaml` into the run's folder. Raises OutputError."""
    write_report_of(run.job, report, run.folder)


def write_report_of(job: Job, report: Report, output: str) -> None:
    """Write the report of an output, and its job as resolved, into it. Raises OutputError."""
    folder = OutputFolder.at(output)
    for name, text in ((RUN_FILE, json.dumps(asdict(report), indent=2) + "\n"), (CONFIG_FILE, job.to_yaml())):
        with folder.whole_file(folder.private / name) as staged:
            staged.write_text(text, encoding="utf-8")


def read_report(output: str) -> Report | None:
    """Return the report of a finished output; None where there is none that can be read."""
    folder = OutputFolder.at(output)
    try:
        return Report(**json.loads(folder.store.read(folder.private / RUN_FILE)))
    except (OSError, ValueError, TypeError):
        return None


def read_failure(output: str) -> dict[str, Any] | None:
    """Return what `write_failure` left; None where there is nothing that can be read."""
    folder = OutputFolder.at(output)
    try:
        failure = json.loads(folder.store.read(folder.private / RUN_FILE))
    except (OSError, ValueError):
        return None
    return (
        failure
        if isinstance(failure, dict) and {"units", "units_done", "reason", "exit_code"} <= set(failure)
        else None
    )
