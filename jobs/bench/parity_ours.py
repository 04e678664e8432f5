"""Rows through the stages of a job, in this process: the rows that its output would hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pydantic import TypeAdapter

from gptj_batch.model_folder import read_facts
from gptj_batch.stages.columns import KEY, UNIT, with_column, without_internal
from gptj_batch.stages.decode import DecodeStage
from gptj_batch.stages.infer import InferStage, ReplicaSettings
from gptj_batch.stages.tokenize import TokenizeStage
from gptj_batch.tasks.registry import AnySettings, TaskSettings, make_task

SETTINGS: Final[TypeAdapter[AnySettings]] = TypeAdapter(TaskSettings)


def output_rows(
    task: Mapping[str, Any], folder: Path, records: Sequence[Mapping[str, Any]], threads: int
) -> list[dict[str, Any]]:
    """Return records with the columns that a task adds, all of them in the engine at once, in float32.

    task: the block of a job file    Raises GPTJBatchError.
    """
    settings = SETTINGS.validate_python(dict(task))
    facts = read_facts(folder, None, settings.head)
    made = make_task(settings, facts)
    replica = ReplicaSettings(
        kind="native", model_path=str(folder), revision=None, dtype="float32", device="cpu", num_threads=threads
    )
    table = pa.Table.from_pylist([dict(record) for record in records])
    table = with_column(table, KEY, pa.array([f"row:{row}" for row in range(len(records))], pa.string()))
    table = with_column(table, UNIT, pa.array([0] * len(records), pa.int64()))
    table = TokenizeStage(made, str(folder), None, facts.n_positions)(table)
    table = InferStage(made, replica)(table)
    rows: list[dict[str, Any]] = without_internal(DecodeStage(made, str(folder), None, "")(table)).to_pylist()
    return rows
