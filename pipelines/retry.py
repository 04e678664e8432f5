"""What a retry is made of: the finished output's job, and the job that does its failed rows again."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any

import pyarrow as pa

from gptj_batch.errors import ConfigError
from gptj_batch.model_folder import read_facts
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.progress import differences, load_plan
from gptj_batch.records.publish import is_complete
from gptj_batch.records.read import Unit, plan_units
from gptj_batch.records.retry import KEY, Keys, RetryFolder
from gptj_batch.records.retry_input import failed_rows_of_input
from gptj_batch.records.schema import name_list
from gptj_batch.stages.read import row_keys
from gptj_batch.tasks.base import ERROR_COLUMN
from gptj_batch.tasks.registry import make_task
from pipelines.config import Job, check_job
from pipelines.job_file import apply_overrides, parse_job
from pipelines.ledger import is_incremental
from pipelines.prepare import Run, prepare
from pipelines.report import CONFIG_FILE

# What must be as it was, so that the rows that are done again fit the others.
_SAME = ("task", "model", "backend")
_NUM_ROWS = re.compile(r"(\d+) rows")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished output: the job that made it, and what it was made of."""

    job: Job
    fingerprint: Mapping[str, Any]

    @classmethod
    def read(cls, output: str, overrides: Sequence[str] = ()) -> "Finished":
        """Read what made an output. Raises ConfigError where it is none that is complete, OutputError for damage."""
        folder = OutputFolder.at(output)
        folder.store.check(folder.root)
        if is_incremental(output):
            raise ConfigError(
                f"{folder.root} is kept by incremental runs; name one of them, such as {folder.root}/run=<time> (with "
                "output.incremental=append there is none: run the job with --rescore all)"
            )
        fingerprint = load_plan(output)
        if fingerprint is None:
            raise ConfigError(f"{folder.root} is not an output of gptj-batch; name the folder of a finished run")
        if not is_complete(output):
            raise ConfigError(f"{folder.root} has no _SUCCESS: its run has not finished; run that job to its end first")
        job = _resolved_job(folder, overrides)
        # as it lies now: it may have been moved, or was named from another folder
        return cls(job=_with_output(job, folder.root), fingerprint=fingerprint)

    def added_columns(self) -> list[str]:
        """Return the names of the columns that the task added. Raises CheckpointError for a model that is gone."""
        model = read_facts(self.job.model.path, self.job.model.revision, self.job.task.head)
        return [self.job.output.prefix + name for name in (*make_task(self.job.task, model).adds.names, ERROR_COLUMN)]

    @property
    def error_column(self) -> str:
        """Return the name of the column of errors."""
        return self.job.output.prefix + ERROR_COLUMN

    def keys(self) -> Keys:
        """Return what names the output's rows as the run did that made them; its input need not be there any more."""
        files = _taken_rows(self.fingerprint)

        def keys(table: pa.Table, start: int) -> pa.Array:
            names: list[pa.Array] = []
            first, done = 0, 0
            for path, num_rows in files:
                begin, end = max(start + done, first), min(start + table.num_rows, first + num_rows)
                if begin < end:
                    rows, name = table.slice(done, end - begin), PurePosixPath(path).name
                    names.append(row_keys(rows, self.job.input.key, name, begin - first))
                    done += end - begin
                first += num_rows
            return pa.concat_arrays([*names, pa.array([], pa.string())])

        return keys

    def check_retryable(self) -> None:
        """Raise ConfigError for partitions by what the task added: a row that is done would move to another folder."""
        if moving := [name for name in self.job.output.partition_by if name in self.added_columns()]:
            raise ConfigError(
                f"retry: output.partition_by has {name_list(moving)}, which the task adds, so that rows which are done "
                "again would belong into other folders; run the job anew with output.on_exists=overwrite"
            )

    def take_out(self, folder: RetryFolder) -> int:
        """Write down the failed rows, and return how many they are.

        Parquet parts without partitions have them as they were read; those of all others are read from the input again.

        Raises ConfigError where the input is needed and is another by now, InputError where it cannot be read.
        """
        output = self.job.output
        if output.format == "parquet" and not output.partition_by:
            return folder.take_out(self.added_columns(), self.error_column, self.keys())
        run = prepare(self.job)
        if changed := differences({"input": self.fingerprint["input"]}, {"input": run.fingerprint()["input"]}):
            shown = "\n  ".join(changed[:20])
            raise ConfigError(
                f"retry: rows of {output.format} or partitioned outputs are read from the input again, and it is "
                f"another now:\n  {shown}\nPut the old files back, or run the job anew with output.on_exists=overwrite"
            )
        plan = plan_units(run.inputs, self.fingerprint["rows_per_unit"], self.job.input.limit)
        args = (run.columns, output.partition_by, self.error_column, self._unit_keys)
        return folder.write_rows(failed_rows_of_input(output.path, plan, *args))

    def _unit_keys(self, rows: pa.Table, unit: Unit) -> pa.Array:
        return row_keys(rows, self.job.input.key, PurePosixPath(unit.path).name, unit.start)

    def retry_job(self, num_rows: int) -> Job:
        """Return the job that does the failed rows again."""
        folder = RetryFolder(self.job.output.path)
        values = self.job.model_dump(mode="json")
        values["input"] = {"path": str(folder.rows), "key": KEY}
        values["output"] = {"path": str(folder.output), "prefix": self.job.output.prefix}
        values["errors"] |= {"max_failed_rows": float(max(num_rows, 1)), "bad_files": "fail"}
        return Job.model_validate(values)

    def check_same(self, run: Run) -> None:
        """Raise ConfigError where the retry would not do the rows as the others were done."""
        now = run.fingerprint()
        before, after = ({name: each.get(name) for name in _SAME} for each in (self.fingerprint, now))
        if changed := differences(before, after):
            shown = "\n  ".join(changed[:20])
            raise ConfigError(
                f"output.path: {self.job.output.path} was made by another configuration:\n  {shown}\nSet it back, or "
                "run the job anew with output.on_exists=overwrite"
            )


def _resolved_job(folder: OutputFolder, overrides: Sequence[str]) -> Job:
    file = folder.private / CONFIG_FILE
    try:
        text = folder.store.read(file).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"job file {file} cannot be read: {error}") from None
    job = parse_job(text, str(file))
    apply_overrides(job, overrides)
    return check_job(job)


def _with_output(job: Job, root: PurePath) -> Job:
    values = job.model_dump(mode="json")
    values["output"]["path"] = str(root)
    return Job.model_validate(values)


def _taken_rows(fingerprint: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the input's files and how many rows were read of each, in order."""
    facts = fingerprint["input"]
    taken: list[tuple[str, int]] = []
    left = facts.get("limit")
    for path, file in sorted(facts["files"].items()):
        match = _NUM_ROWS.match(file)
        num_rows = int(match[1]) if match else 0
        taken.append((path, num_rows if left is None else min(num_rows, left)))
        left = None if left is None else left - taken[-1][1]
    return taken
