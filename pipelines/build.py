"""The spine: read -> tokenize -> infer -> decode -> write, once, in the order the data flows.

A unit of rows is a block of Ray Data is a file of the output: every stage maps a whole table to a whole table, several
tables are in a replica at once, and what comes out at the end is one small row of counts a unit.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data import Dataset

from gptj_batch.records.attempts import Attempts
from gptj_batch.records.lease import Fence
from gptj_batch.records.output import OutputFolder
from gptj_batch.stages.careful import RowCare
from gptj_batch.stages.careful_stage import CarefulStage
from gptj_batch.stages.decode import DecodeStage
from gptj_batch.stages.infer import InferStage
from gptj_batch.stages.read import ReadStage
from gptj_batch.stages.resources import ReplicaPlan, tasks_at_once
from gptj_batch.stages.tokenize import TokenizeStage
from gptj_batch.stages.write import WriteStage
from pipelines.prepare import Run
from pipelines.replica import replica_settings
from pipelines.whole_blocks import Stage, on_cpu, on_replicas, unit_numbers

# Rows that should be in a replica at once, so that its engine never runs empty between two tables: twice what the
# engine decodes at the same time on a GPU (256).
ROWS_AT_ONCE = 512
MIN_TABLES, MAX_TABLES = 2, 16


def build(run: Run, pending: NDArray[np.int32], replicas: ReplicaPlan, fence: Fence | None = None) -> Dataset:
    """Return the dataset whose execution does the pending units and yields their counts (`stages.write.COUNTS`).

    fence: of the lease on the output; all stages then look out for rows that end them, nothing is written without it
    """
    job, task = run.job, run.task
    model, revision = run.model_path, job.model.revision
    output = job.output

    care = None if fence is None else row_care(run, fence)
    careful = partial(_careful, run, care)

    at_once = tasks_at_once(len(pending))
    units = unit_numbers(len(pending), at_once)
    read = ReadStage(run.plan, pending, run.columns, job.input.key)
    records = on_cpu(units, careful(read, "read", read.unit_of), at_once)
    tokenize = TokenizeStage(task, model, revision, run.model.n_positions)
    prompts = on_cpu(records, careful(tokenize, "tokenized"), at_once)
    infer = (task, replica_settings(run, replicas.device, replicas.num_threads), care)
    results = on_replicas(prompts, InferStage, infer, replicas, tables_at_once(run), len(pending))
    columns = on_cpu(results, careful(DecodeStage(task, model, revision, output.prefix), "decoded"), at_once)
    return on_cpu(columns, careful(write_stage(run, fence), "written"), at_once)


def _careful(
    run: Run, care: RowCare | None, stage: Stage, done: str, unit_of: Callable[[pa.Table], int] | None = None
) -> Stage:
    """Return the stage as one that looks out for rows that end its process, where notes of them can be kept."""
    return stage if care is None else CarefulStage(stage, done, care, run.plan.unit, unit_of)


def write_stage(run: Run, fence: Fence | None = None) -> WriteStage:
    """Return the stage that writes a run's units; with the fence of a lease, only as long as it holds."""
    root = OutputFolder.at(run.folder).root.as_posix()
    return WriteStage(run.plan, root, run.error_column, run.lineage(), fence)


def tables_at_once(run: Run) -> int:
    """Return how many tables a replica has in hand."""
    return max(MIN_TABLES, min(MAX_TABLES, -(-ROWS_AT_ONCE // run.plan.max_rows_per_unit)))


def row_care(run: Run, fence: Fence) -> RowCare:
    """Return how replicas deal with rows that end or stop them."""
    errors = run.job.errors
    attempts = Attempts(fence.output, fence.token)
    return RowCare(attempts=attempts, row_timeout_s=errors.row_timeout_s, max_deadly_rows=errors.max_deadly_rows)
