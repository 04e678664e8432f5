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
        unit = self._plan.unit(self.unit_of(table))
        records = read_unit(unit, self._columns)
        numbers = pa.array([unit.index] * records.num_rows, type=pa.int64())
        # The file's name without its folder, so that moving a dataset changes no sample.
        keys = row_keys(records, self._key, PurePosixPath(unit.path).name, unit.start)
        return with_column(with_column(records, KEY, keys), UNIT, numbers)

    def unit_of(self, table: pa.Table) -> int:
        """Return the number of the unit that `table` names."""
        (place,) = table.column("id").to_pylist()
        return int(self._pending[place])


def row_keys(records: pa.Table, key: str | None, name: str, start: int) -> pa.Array:
    """Return what names each row: its value in the column `key`, or where there is none `name` and its number."""
    keys = [f"{name}:{row}" for row in range(start, start + records.num_rows)]
    if key is not None:
        keys = [own or number for own, number in zip(own_keys(records, key), keys, strict=True)]
    return pa.array(keys, type=pa.string())


def own_keys(records: pa.Table, key: str) -> list[str | None]:
    """Return each row's value in the column `key`; None where it is null or cannot be read."""
    rows = records_of(records, [key])
    return [None if isinstance(row, RecordError) or row[key] is None else str(row[key]) for row in rows]
