"""The first stage: the number of a unit in, the unit's records out."""

from pathlib import PurePosixPath
from typing import Any

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
        return with_column(with_column(records, KEY, self._keys(records, unit.path, unit.start)), UNIT, numbers)

    def _keys(self, records: pa.Table, path: str, start: int) -> pa.Array:
        # The file's name without its folder, so that moving a dataset changes no sample.
        name = PurePosixPath(path).name
        keys = [f"{name}:{row}" for row in range(start, start + records.num_rows)]
        if self._key is not None:
            rows = records_of(records, [self._key])
            keys = [self._named(row) or key for row, key in zip(rows, keys, strict=True)]
        return pa.array(keys, type=pa.string())

    def _named(self, row: dict[str, Any] | RecordError) -> str | None:
        """Return a row's own key; None where it is null or cannot be read."""
        value = None if isinstance(row, RecordError) or self._key is None else row[self._key]
        return None if value is None else str(value)
