"""The plan of a run: which rows of which file each unit is, computed from the files' row counts."""

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import pyarrow as pa

from gptj_batch.records.footers import FileFormat, InputFiles


@dataclass(frozen=True)
class Unit:
    """Rows start to stop (exclusive) of one file; `file_rows` and `file_bytes` are what it had when it was planned.

    `schema` is the whole run's, which the rows are read as.
    """

    index: int
    path: str
    format: FileFormat
    start: int
    stop: int
    file_rows: int
    file_bytes: int
    schema: pa.Schema = field(repr=False, compare=False)

    @property
    def num_rows(self) -> int:
        """Return how many rows the unit has."""
        return self.stop - self.start


@dataclass(frozen=True)
class UnitPlan:
    """Every unit of a run, kept as a few numbers a file: small to send, however many units there are.

    taken_rows: how many of each file's rows are read, fewer than it has where a limit cuts
    """

    files: tuple[tuple[str, FileFormat, int, int], ...]  # path, format, rows, bytes
    taken_rows: tuple[int, ...]
    max_rows_per_unit: int
    schema: pa.Schema = field(repr=False)

    @cached_property
    def _first_units(self) -> list[int]:
        """The number of each file's first unit, and behind the last the number of units."""
        counts = (-(-rows // self.max_rows_per_unit) for rows in self.taken_rows)
        return list(accumulate(counts, initial=0))

    @property
    def num_units(self) -> int:
        """Return the number of units. An input without rows is one unit, so that its output has columns."""
        return max(self._first_units[-1], 1)

    @property
    def num_rows(self) -> int:
        """Return the number of rows of all units."""
        return sum(self.taken_rows)

    def unit(self, index: int) -> Unit:
        """Return unit number `index`."""
        assert 0 <= index < self.num_units, f"unit {index} of {self.num_units}"
        file = min(bisect_right(self._first_units, index) - 1, len(self.files) - 1)
        path, file_format, file_rows, file_bytes = self.files[file]
        start = (index - self._first_units[file]) * self.max_rows_per_unit
        stop = min(start + self.max_rows_per_unit, self.taken_rows[file])
        return Unit(index, path, file_format, start, stop, file_rows, file_bytes, self.schema)


def plan_units(inputs: InputFiles, max_rows_per_unit: int, limit: int | None = None) -> UnitPlan:
    """Cut the files into units of at most `max_rows_per_unit` rows, stopping after `limit` rows."""
    assert inputs.files, "list_files returns a file or raises"
    assert max_rows_per_unit >= 1, "a unit has a row"
    left = inputs.num_rows if limit is None else limit
    taken = []
    for file in inputs.files:
        taken.append(min(file.num_rows, left))
        left -= taken[-1]
    files = tuple((file.path, file.format, file.num_rows, file.size_bytes) for file in inputs.files)
    return UnitPlan(files, tuple(taken), max_rows_per_unit, inputs.schema)
