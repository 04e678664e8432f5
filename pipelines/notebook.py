"""What the notebook functions share: from the caller's data to the same kind of data with the task's columns added."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gptj_batch.errors import ConfigError
from gptj_batch.records.lease import Fence
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.read import InputFile, InputFiles, list_files, plan_units, read_unit
from gptj_batch.records.unit_files import all_units, unit_schema, unit_tables
from gptj_batch.stages.columns import BACKEND_FACTS, KEY, UNIT, with_column
from gptj_batch.stages.read import row_keys
from gptj_batch.stages.write import counts_of
from gptj_batch.tasks.base import ERROR_COLUMN
from pipelines.arguments import argument_names, is_written, make_job
from pipelines.backend_choice import check_here
from pipelines.bar import progress_of
from pipelines.claim import claimed
from pipelines.config import Job
from pipelines.finish import finish
from pipelines.no_rows import write_no_rows
from pipelines.prepare import Run, prepare_on
from pipelines.result_summary import Call
from pipelines.session import session
from pipelines.tables import CallersTable, callers_table, fingerprint

MAX_REASONS_SHOWN = 3


def add_columns(kind: str, data: Any, progress: bool, arguments: Mapping[str, Any]) -> Any:
    """Run a task over `data` and return the same kind with its columns added; see the function of each task.

    Raises GPTJBatchError, in the words of the function's arguments.
    """
    session().set_environment()
    with argument_names(kind):
        path = str(data) if isinstance(data, str | Path) else None
        job = make_job(kind, path, arguments)
        if session().is_this_machine():
            check_here(job)
        if path is not None:
            from pipelines.notebook_datasets import of_path

            return of_path(job, progress)
        if job.input.columns is not None or job.input.format != "auto":
            raise ConfigError("columns, format: they say how a path is read; choose the columns of your data yourself")
        if _is_ray_dataset(data):
            from pipelines.notebook_datasets import of_dataset

            return of_dataset(job, data, progress)
        return _of_table(job, callers_table(data), progress)


def _is_ray_dataset(data: Any) -> bool:
    module = sys.modules.get("ray.data")
    return module is not None and isinstance(data, module.Dataset)


def _of_table(job: Job, table: CallersTable, progress: bool) -> Any:
    """Run a task over a table in memory."""
    if is_written(job):
        records = table.arrow()
        run = prepare_on(job, _inputs(table, records))
        with claimed(run) as claim:
            work = _Work(claim.run, records, claim.pending, progress)
            added = work.write(claim.fence) if claim.fence is not None else _read_back(run)
    else:
        run = prepare_on(job, _inputs(table, None))
        names = run.task.reads | ({job.input.key} if job.input.key is not None else set())
        records = table.arrow([name for name in table.names if name in names])
        work = _Work(run, records, np.arange(run.plan.num_units, dtype=np.int32), progress)
        added = work.columns()
    result = table.with_columns(added)
    session().remember(result, Call.of(run, work.shown, work.backend))
    tell_failed(job.task.kind, run.error_column, added.column(run.error_column))
    return result


def _inputs(table: CallersTable, records: pa.Table | None) -> InputFiles:
    """Return a table as the one file that a run reads; where it is written, its content stands in its name."""
    if records is None:
        schema = pa.schema([pa.field(name, pa.null()) for name in table.names])
        name = "data"
    else:
        schema, name = records.schema, f"data-{fingerprint(records)}"
    return InputFiles((InputFile(name, "arrow", table.num_rows, 0, 0, schema),), (), schema)


class _Work:
    """A run over a table in memory."""

    def __init__(self, run: Run, records: pa.Table, pending: NDArray[np.int32], progress: bool) -> None:
        self._run = run
        self._records = records
        self._pending = pending
        num_rows = rows_of(run, pending)
        self.shown = progress_of(run.job.task.kind, num_rows, progress and num_rows > 0)
        self.backend: dict[str, Any] = {}

    def columns(self) -> pa.Table:
        """Return the added columns."""
        names = added_names(self._run)
        tables = [result.select(names).replace_schema_metadata(None) for result in self._results()]
        return pa.concat_tables([added_schema(self._run).empty_table(), *tables])

    def write(self, fence: Fence) -> pa.Table:
        """Write what is still to do, as a job does, and return the added columns of all rows."""
        run, started = self._run, time.time()
        if run.plan.num_rows:
            from pipelines.build import write_stage  # imports Ray, as the two of `_results`

            write = write_stage(run, fence)
            for result in self._results():
                write(result)
        else:
            write_no_rows(run)
        added = _of_units(run)  # before they become parts, in whose form rows may have another order
        finish(run, self.shown.counts, self.shown.seconds, started, self.backend, fence)
        return added

    def _results(self) -> Iterator[pa.Table]:
        """Yield the finished pending units."""
        if not rows_of(self._run, self._pending):
            return
        from pipelines.enrich import Enrich
        from pipelines.notebook_pool import warm_replicas

        enrich = Enrich(self._run, warm_replicas(self._run, len(self._pending)))
        try:
            for result in enrich.tables(self._units()):
                self.shown.add(counts_of(result, self._run.error_column))
                self.backend = json.loads((result.schema.metadata or {}).get(BACKEND_FACTS, b"{}"))
                yield result
        finally:
            self.shown.finish()

    def _units(self) -> Iterator[pa.Table]:
        """Yield the records of each pending unit, with their keys."""
        run = self._run
        for index in self._pending:
            unit = run.plan.unit(int(index))
            records = self._records.slice(unit.start, unit.num_rows)
            if records.num_columns:
                keyed = with_column(records, KEY, row_keys(records, run.job.input.key, "row", unit.start))
            else:  # without columns, Arrow knows no rows either
                keyed = pa.table({KEY: [f"row:{row}" for row in range(unit.start, unit.stop)]})
            yield with_column(keyed, UNIT, pa.array([unit.index] * unit.num_rows, type=pa.int64()))


def rows_of(run: Run, units: NDArray[np.int32]) -> int:
    """Return how many rows some of a run's units have."""
    return sum(run.plan.unit(int(index)).num_rows for index in units)


def added_schema(run: Run) -> pa.Schema:
    """Return the columns that a run adds, as the output names them."""
    fields = [*run.task.adds, pa.field(ERROR_COLUMN, pa.string())]
    return pa.schema([field.with_name(run.job.output.prefix + field.name) for field in fields])


def added_names(run: Run) -> list[str]:
    """Return the names of the columns that a run adds."""
    return list(added_schema(run).names)


def _of_units(run: Run) -> pa.Table:
    units = all_units(OutputFolder.at(run.folder), run.plan.num_units)
    names = added_names(run)
    tables = [table.select(names) for table in unit_tables(units, unit_schema(units[0]), names)]
    return pa.concat_tables(tables).replace_schema_metadata(None)


def _read_back(run: Run) -> pa.Table:
    """Return the added columns of an output that was finished before. Raises ConfigError where its rows are not theirs.

    Partitions have another order, and JSON lines no types.
    """
    output = run.job.output
    if output.partition_by or output.format == "jsonl":
        raise ConfigError(
            f"output.path: {output.path} is complete, and its {'partitions' if output.partition_by else 'JSON lines'} "
            "cannot be put beside the rows of a table again; read it, or set output.on_exists=overwrite to do it anew"
        )
    files = list_files([run.job.output.path], run.job.output.format)
    plan = plan_units(files, max(files.num_rows, 1))
    units = [read_unit(plan.unit(index), added_names(run)) for index in range(plan.num_units)]
    return pa.concat_tables(units).replace_schema_metadata(None)


def tell_failed(kind: str, name: str, errors: pa.ChunkedArray) -> None:
    """Say on stderr how many rows failed, and why; a reason never holds what a record says."""
    reasons = Counter(errors.drop_null().to_pylist())
    if not reasons:
        return
    lines = [f"{kind}(): {sum(reasons.values()):,} of {len(errors):,} rows failed; see the column `{name}`:"]
    lines += [f"  {count:,} x {reason}" for reason, count in reasons.most_common(MAX_REASONS_SHOWN)]
    if len(reasons) > MAX_REASONS_SHOWN:
        lines.append(f"  and {len(reasons) - MAX_REASONS_SHOWN:,} other reasons")
    print("\n".join(lines), file=sys.stderr)  # noqa: T201 - it is meant for the cell
