"""The plan of a run: which rows of which file each unit is, computed from the files' row counts."""

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise

import pyarrow as pa

from gptj_batch.errors import InputError
from gptj_batch.records.footers import InputFile, InputFiles
from gptj_batch.records.formats import FileFormat
from gptj_batch.records.marks import Marks


@dataclass(frozen=True)
class Unit:
    """Rows start to stop (exclusive) of one file; `file_rows` and `file_bytes` are what it had when it was planned.

    schema: the whole run's, which the rows are read as    partition: the columns that the file's folders say
    mark: of a file of text, a row at or before the first one and where it begins    header: of CSV, its column names
    """

    index: int
    path: str
    format: FileFormat
    start: int
    stop: int
    file_rows: int
    file_bytes: int
    schema: pa.Schema = field(repr=False, compare=False)
    partition: tuple[tuple[str, str | None], ...] = ()
    mark: tuple[int, int] = (0, 0)
    header: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """Return how many rows the unit has."""
        return self.stop - self.start

    @property
    def title(self) -> str:
        """Return what a message calls the unit."""
        return f"unit {self.index} ({self.path}, rows {self.start} to {self.stop})"

    def changed(self, how: str) -> InputError:
        """Return the error for a file that is not what was planned."""
        return InputError(
            f"{self.path}: the file changed since it was planned ({how}). Put the old file back, or run the job on "
            "another output.path"
        )


@dataclass(frozen=True)
class PlannedFile:
    """A file, as its units need to know it."""

    path: str
    format: FileFormat
    num_rows: int
    size_bytes: int
    partition: tuple[tuple[str, str | None], ...]
    marks: Marks | None
    header: tuple[str, ...]


@dataclass(frozen=True)
class UnitPlan:
    """Every unit of a run, kept as a few numbers a file: small to send, however many units there are.

    taken_rows: how many of each file's rows are read, fewer than it has where a limit cuts
    """

    files: tuple[PlannedFile, ...]
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

    @property
    def units_of_files(self) -> list[int]:
        """Return how many units each file has, in the order of the files; none where no file has a row."""
        return [after - before for before, after in pairwise(self._first_units)]

    def unit(self, index: int) -> Unit:
        """Return unit number `index`."""
        assert 0 <= index < self.num_units, f"unit {index} of {self.num_units}"
        place = min(bisect_right(self._first_units, index) - 1, len(self.files) - 1)
        file = self.files[place]
        start = (index - self._first_units[place]) * self.max_rows_per_unit
        stop = min(start + self.max_rows_per_unit, self.taken_rows[place])
        mark = file.marks.before(start) if file.marks is not None and start < stop else (0, 0)
        return Unit(
            index,
            file.path,
            file.format,
            start,
            stop,
            file.num_rows,
            file.size_bytes,
            self.schema,
            partition=file.partition,
            mark=mark,
            header=file.header,
        )


def plan_units(inputs: InputFiles, max_rows_per_unit: int, limit: int | None = None) -> UnitPlan:
    """Cut the files into units of at most `max_rows_per_unit` rows, stopping after `limit` rows."""
    assert inputs.files, "list_files returns a file or raises"
    assert max_rows_per_unit >= 1, "a unit has a row"
    left = inputs.num_rows if limit is None else limit
    taken = []
    for file in inputs.files:
        taken.append(min(file.num_rows, left))
        left -= taken[-1]
    files = tuple(_planned(file, rows, max_rows_per_unit) for file, rows in zip(inputs.files, taken, strict=True))
    return UnitPlan(files, tuple(taken), max_rows_per_unit, inputs.schema)


def _planned(file: InputFile, taken_rows: int, max_rows_per_unit: int) -> PlannedFile:
    marks = file.marks.thinned(max_rows_per_unit, taken_rows) if file.marks is not None else None
    return PlannedFile(file.path, file.format, file.num_rows, file.size_bytes, file.partition, marks, file.header)
