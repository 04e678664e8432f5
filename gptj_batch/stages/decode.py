"""The fourth stage: packed results in, the task's columns out."""

import pyarrow as pa

from gptj_batch.records.schema import append
from gptj_batch.stages.columns import ERROR, NOTES, RAW
from gptj_batch.stages.tokenize import load_tokenizer
from gptj_batch.tasks.base import ERROR_COLUMN, Task


class DecodeStage:
    """Add the task's columns and `error`, each name behind the output's prefix."""

    def __init__(self, task: Task, model_path: str, revision: str | None, prefix: str) -> None:
        self._task = task
        self._model = (model_path, revision)
        self._prefix = prefix

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with the columns in place of the packed results."""
        columns = self._task.columns(
            table.column(RAW).to_pylist(), table.column(NOTES).to_pylist(), load_tokenizer(*self._model)
        )
        columns.append(table.column(ERROR).combine_chunks())
        fields = [*self._task.adds, pa.field(ERROR_COLUMN, pa.string())]
        named = [field.with_name(self._prefix + field.name) for field in fields]
        return append(table.drop_columns([RAW, NOTES]), pa.table(columns, schema=pa.schema(named)))

    def leave_out(self, table: pa.Table, error: str) -> pa.Table:
        """Return the table with this error for every row, its results untouched; see `CarefulStage`."""
        values = {RAW: pa.nulls, NOTES: pa.nulls, ERROR: lambda size, kind: pa.array([error] * size, kind)}
        for name, make in values.items():
            place = table.schema.get_field_index(name)
            field = table.schema.field(place)
            table = table.set_column(place, field, make(table.num_rows, field.type))
        return self(table)
