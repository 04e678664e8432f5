"""The first stage: the number of a unit in, the unit's records out."""

from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gptj_batch.errors import RecordError
from gptj_batch.records.read import UnitPlan, read_unit
from gptj_batch.records.rows import records_of
from gptj_batch.stages.columns import KEY, UNIT, with_column


class ReadStage:
    """Read whole units.

    plan: every unit of the run    pending: the numbers of those still to do, by their place in this run
    columns: what to read, None for all    key: the column that names a record, None for file and row number
    """

    def __init__(self, plan: UnitPlan, pending: NDArray[np.int32], columns: list[str] | None, key: str | None) -> None:
        self._plan = plan
        self._pending = pending
        self._columns = columns
        self._key = key

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the records of the one unit that `table` names in its column `id`."""
        (place,) = table.column("id").to_pylist()
        unit = self._plan.unit(int(self._pending[place]))
        records = read_unit(unit, self._columns)
        numbers = pa.array([unit.index] * records.num_rows, type=pa.int64())
        return with_column(
            with_column(records, KEY, row_keys(records, unit.path, unit.start, self._key)), UNIT, numbers
        )


def row_keys(records: pa.Table, path: str, start: int, column: str | None) -> pa.Array:
    """Return what names each row, and its samples are drawn by: its value in `column`, else file and row number.

    start: the place of the first record in the file    column: may hold nulls, and values that cannot be read
    """
    # The file's name without its folder, so that moving a dataset changes no sample.
    name = PurePosixPath(path).name
    keys = [f"{name}:{row}" for row in range(start, start + records.num_rows)]
    if column is not None:
        values = (None if isinstance(row, RecordError) else row[column] for row in records_of(records, [column]))
        keys = [key if value is None else str(value) or key for value, key in zip(values, keys, strict=True)]
    return pa.array(keys, type=pa.string())
