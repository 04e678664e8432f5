"""The first stage: the number of a unit in, the unit's records out."""

from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gptj_batch.records.read import UnitPlan, read_unit
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
        if self._key is not None:
            return pa.array([str(value) for value in records.column(self._key).to_pylist()], type=pa.string())
        # The file's name without its folder, so that moving a dataset changes no sample.
        name = PurePosixPath(path).name
        return pa.array([f"{name}:{row}" for row in range(start, start + records.num_rows)], type=pa.string())
