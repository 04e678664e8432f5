"""The notebook functions on what Ray Data reads: paths and Ray Datasets, lazily, or written as a job writes.

Every consumption of a lazy result runs the model again over what it reads, on warm replicas; `materialize()` keeps it.
"""

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Dataset
from ray.exceptions import RayError

from gptj_batch.errors import InputError
from gptj_batch.records.lease import Fence
from gptj_batch.records.plan import PlannedFile
from gptj_batch.records.read import InputFile, InputFiles, UnitPlan, list_files, plan_units
from gptj_batch.records.schema import output_schema, select_columns
from gptj_batch.records.write import write_unit
from gptj_batch.stages.columns import BACKEND_FACTS
from gptj_batch.stages.read import ReadStage
from gptj_batch.stages.write import counts_of
from pipelines.arguments import is_written
from pipelines.bar import Shown, progress_of
from pipelines.build import write_stage
from pipelines.claim import claimed
from pipelines.config import Job
from pipelines.enrich import Enrich, public
from pipelines.finish import finish
from pipelines.no_rows import write_no_rows
from pipelines.notebook import added_schema, rows_of
from pipelines.notebook_pool import warm_replicas
from pipelines.prepare import Run, find_inputs, prepare, prepare_on
from pipelines.ray_errors import as_ours
from pipelines.result_summary import Call
from pipelines.session import session
from pipelines.whole_blocks import in_order, on_cpu, streamed, unit_numbers_in_order


def of_path(job: Job, progress: bool) -> Dataset:
    """Return the records of a path with the task's columns; with an output, those that stand in it at the end."""
    if is_written(job):
        return _written(prepare(job), progress)
    run = prepare_on(job, find_inputs(job))
    every = np.arange(run.plan.num_units, dtype=np.int32)
    session().keeper()
    if not run.plan.num_rows:
        schema = select_columns(run.inputs.schema, run.columns)
        empty: Dataset = ray.data.from_arrow(output_schema(schema, added_schema(run)).empty_table())
        return empty
    result = on_cpu(_units(run, every), public)
    session().remember(result, Call.of(run))
    return result


def _units(run: Run, pending: NDArray[np.int32]) -> Dataset:
    """Return the finished pending units, each as one block."""
    units = unit_numbers_in_order(len(pending))
    records = on_cpu(units, ReadStage(run.plan, pending, run.columns, run.job.input.key))
    return on_cpu(records, Enrich(run, warm_replicas(run, len(pending))).unit)


def _written(run: Run, progress: bool) -> Dataset:
    """Do what is still to do of a job, and return the records of its output."""
    session().keeper()
    with claimed(run) as claim:
        num_rows = rows_of(claim.run, claim.pending)
        shown = progress_of(run.job.task.kind, num_rows, progress and num_rows > 0)
        backend = {} if claim.fence is None else _write(claim.run, claim.pending, claim.fence, shown)
    return _of_output(run, Call.of(run, shown, backend))


def _write(run: Run, pending: NDArray[np.int32], fence: Fence, shown: Shown) -> dict[str, Any]:
    """Write the pending units and publish; return what the replicas said of themselves."""
    started = time.time()
    backend: dict[str, Any] = {}
    if not run.plan.num_rows:
        write_no_rows(run)
    elif len(pending):
        try:
            for table in _executed(on_cpu(_units(run, pending), write_stage(run, fence))):
                for counts in table.to_pylist():
                    shown.add(counts)
                    backend = json.loads(counts["backend"])
        finally:
            shown.finish()
    finish(run, shown.counts, shown.seconds, started, backend, fence)
    return backend


def _executed(dataset: Dataset) -> Any:
    """Yield a dataset's blocks. Raises GPTJBatchError, freed of what Ray puts around it."""
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayError as error:
        ours = as_ours(error)
        if ours is None:
            raise
        raise ours from None


def _of_output(run: Run, call: Call) -> Dataset:
    files = list_files([run.job.output.path], run.job.output.format)
    plan = plan_units(files, run.plan.max_rows_per_unit)
    every = np.arange(plan.num_units, dtype=np.int32)
    if not files.num_rows:
        empty: Dataset = ray.data.from_arrow(files.schema.empty_table())
        return empty
    records = on_cpu(unit_numbers_in_order(plan.num_units), ReadStage(plan, every, None, None))
    result = on_cpu(records, public)
    session().remember(result, call)
    return result


def of_dataset(job: Job, dataset: Dataset, progress: bool) -> Dataset:
    """Return somebody's dataset with the task's columns; nothing of it is executed, unless it is to be written."""
    names = dataset.columns(fetch_if_missing=False)
    schema = _types_of(dataset) or pa.schema([pa.field(name, pa.null()) for name in names or []])
    inputs = InputFiles((InputFile(f"dataset-{time.time_ns()}", "arrow", 0, 0, 0, schema),), (), schema)
    run = prepare_on(job, inputs, are_columns_known=names is not None)
    if is_written(job):
        with claimed(run) as claim:
            assert claim.fence is not None, "no two datasets are known to be the same, so none is known to be done"
            return _written_blocks(claim.run, _blocks(claim.run, dataset), progress, claim.fence)
    result = on_cpu(_blocks(run, dataset), public)
    session().remember(result, Call.of(run))
    return result


def _types_of(dataset: Dataset) -> pa.Schema | None:
    """Return the types of a dataset's columns where they are known without executing it, and are Arrow's."""
    known = dataset.schema(fetch_if_missing=False)
    return known.base_schema if known is not None and isinstance(known.base_schema, pa.Schema) else None


def _blocks(run: Run, dataset: Dataset) -> Dataset:
    """Return a dataset's blocks with the columns, those of `stages.columns` among them."""
    return in_order(streamed(dataset, Enrich(run, warm_replicas(run, None)).block))


def _written_blocks(run: Run, blocks: Dataset, progress: bool, fence: Fence) -> Dataset:
    """Write a dataset's blocks as they come, each as a unit; what is not finished cannot be gone on with.

    Nothing says that the dataset will be the same when it is executed again.
    """
    started = time.time()
    shown = progress_of(run.job.task.kind, None, progress)
    sizes: list[int] = []
    backend: dict[str, Any] = {}
    try:
        for table in _executed(blocks):
            backend = json.loads((table.schema.metadata or {}).get(BACKEND_FACTS, b"{}"))
            lineage = json.dumps({**run.lineage(), "backend": backend}, sort_keys=True).encode()
            fence.check()
            write_unit(public(table), run.folder, len(sizes), metadata=lineage)
            shown.add(counts_of(table, run.error_column))
            sizes.append(table.num_rows)
    finally:
        shown.finish()
    if not sizes:
        raise InputError("data: the dataset has no rows, so there is nothing to write")
    files = tuple(PlannedFile("dataset", "arrow", size, 0, (), None, ()) for size in sizes)
    plan = UnitPlan(files, tuple(sizes), max(sizes), run.plan.schema)
    run = replace(run, plan=plan)
    finish(run, shown.counts, shown.seconds, started, backend, fence)
    return _of_output(run, Call.of(run, shown, backend))
