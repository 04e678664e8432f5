"""Failed rows of a finished output: taken out to be done again, and what became of them put back in their places.

`_gptj_batch/retry/` holds, until a retry is over, the folder `rows` with what is to be done and the folder `output` of
an ordinary run over it. Every step can be the last of a process and is done again by the next:
    1. rows            written, and then `begun.json`, which says that they are all there
    2. output          a run of its own, which resumes
    3. parts           each is written elsewhere and stored whole, under its name; doing it again writes the same
    4. the report
    5. `begun.json` away, and then the folder
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.publish import published_parts
from gptj_batch.records.rewrite import open_parquet_part, parquet_tables, rewrite_part, unreadable

# Where a row stands in the output, and what it was called when it was done first.
PART, ROW, KEY = "gptj_batch_retry_part", "gptj_batch_retry_row", "gptj_batch_retry_key"

Keys = Callable[[pa.Table, int], pa.Array]
"""Returns the keys of a table's rows, from the number of its first row in the whole output."""


class RetryFolder:
    """The folder of an output's retry."""

    def __init__(self, output: str | PurePath) -> None:
        self._folder = OutputFolder.at(output)
        self._store, self._root = self._folder.store, self._folder.retry

    @property
    def rows(self) -> PurePath:
        """Return the folder of the rows that are to be done again."""
        return self._root / "rows"

    @property
    def output(self) -> PurePath:
        """Return the output of the run that does them."""
        return self._root / "output"

    @property
    def _begun(self) -> PurePath:
        return self._root / "begun.json"

    @property
    def num_rows(self) -> int:
        """Return how many rows a retry that was begun and has not ended does; 0 where there is none.

        Raises OutputError.
        """
        try:
            return int(json.loads(self._store.read(self._begun))["rows"])
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return 0
        except OSError as error:
            raise unreadable(self._begun, error) from error

    @property
    def is_open(self) -> bool:
        """Say whether a retry was begun and has not ended. Raises OutputError."""
        return self.num_rows > 0

    def remove(self) -> None:
        """Remove everything of it, first what says that it has begun. Raises OutputError."""
        try:
            self._store.remove_files([self._begun])
        except OSError as error:
            raise not_written(self._begun, error) from error
        with suppress(OSError):  # the next retry removes it before it begins
            self._store.remove(self._root)

    def take_out(self, added: Sequence[str], error_column: str, keys: Keys) -> int:
        """Write the failed rows of Parquet parts, with the columns that they came with; return how many they are.

        added: the columns that the task added    Raises OutputError.
        """
        return self.write_rows(self._failed(added, error_column, keys))

    def write_rows(self, tables: Iterable[pa.Table]) -> int:
        """Write the rows that are to be done again, with their addresses, in the order of these; return their number.

        Raises OutputError; the retry has begun when, and only when, all are written.
        """
        num_rows = 0
        try:
            self._store.remove(self._root)  # what an earlier retry has left; a bucket that refuses that says so now
        except FileNotFoundError:
            pass
        except OSError as error:
            raise not_written(self._root, error) from error
        for number, table in enumerate(tables):
            num_rows += table.num_rows
            with self._folder.whole_file(self.rows / f"rows-{number:08d}.parquet") as staged:
                pq.write_table(table, staged, compression="zstd")
        if num_rows:
            with self._folder.whole_file(self._begun) as staged:
                staged.write_text(json.dumps({"rows": num_rows}) + "\n", encoding="utf-8")
        return num_rows

    def _failed(self, added: Sequence[str], error_column: str, keys: Keys) -> Iterator[pa.Table]:
        first_row = 0  # counted over all parts that there were: the names of rows follow from it
        for name, num_rows in published_parts(self._folder.root).items():
            if self._has(part := self._folder.root / name):
                with open_parquet_part(part) as file:
                    failed = [
                        _failed_rows(table, name, start, added, error_column, keys, first_row)
                        for table, start in parquet_tables(file, part, values_in=error_column)
                    ]
                if failed and (table := pa.concat_tables(failed)).num_rows:
                    yield table
            first_row += num_rows

    def put_back(self, added: Sequence[str], form: PartForm, check: Callable[[], None]) -> None:
        """Put what became of the rows into their parts, part by part; into none that is gone, as a later run's doing.

        form: the parts'    check: is called before and after each is written, raises where the output is another's now

        Raises OutputError.
        """
        for name, done in self._done([ROW, *added]):
            check()
            if self._has(part := self._folder.root / name):
                rewrite_part(self._folder, part, done.column(ROW).to_numpy(), done, added, form, check)

    def _has(self, part: PurePath) -> bool:
        try:
            return self._store.exists(part)
        except OSError as error:
            raise unreadable(part, error) from error

    def _done(self, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """Yield the name of every part that has retried rows, with these rows, in their order."""
        waiting: list[pa.Table] = []
        name = ""
        for file in OutputFolder.at(self.output).parts():
            with open_parquet_part(file) as opened:
                for table, _ in parquet_tables(opened, file, [PART, *columns]):
                    for run in _runs_of_equals(table.column(PART)):
                        piece = table.slice(run.start, len(run))
                        if waiting and piece.column(PART)[0].as_py() != name:
                            yield name, pa.concat_tables(waiting)
                            waiting = []
                        name = piece.column(PART)[0].as_py()
                        waiting.append(piece)
        if waiting:
            yield name, pa.concat_tables(waiting)


def _failed_rows(
    table: pa.Table, part: str, start: int, added: Sequence[str], error_column: str, keys: Keys, first_row: int
) -> pa.Table:
    """Return a row group's failed rows, without what the task added, and with their addresses."""
    mask = pc.is_valid(table.column(error_column))
    places = pa.array(np.arange(start, start + table.num_rows, dtype=np.int64))
    names = keys(table, first_row + start)
    parts = pa.array([part] * table.num_rows, pa.string())
    table = with_addresses(table.drop_columns(list(added)), parts, places, names)
    return pa.concat_tables([table.slice(0, 0), *(table.slice(run.start, len(run)) for run in _runs(mask))])


def with_addresses(table: pa.Table, parts: pa.Array, places: pa.Array, keys: pa.Array) -> pa.Table:
    """Return rows with the names of their parts, their places in these, and what they were called."""
    for name, values in ((PART, parts), (ROW, places), (KEY, keys)):
        table = table.append_column(name, values)
    return table


def _runs(mask: pa.ChunkedArray) -> Iterator[range]:
    """Yield the runs of places where the mask is true: not every type can be filtered, and every one can be sliced."""
    edges = np.flatnonzero(np.diff(mask.to_numpy().astype(np.int8), prepend=0, append=0))
    yield from (range(int(start), int(stop)) for start, stop in edges.reshape(-1, 2))


def _runs_of_equals(column: pa.ChunkedArray) -> Iterator[range]:
    names = np.array(column.to_pylist())
    edges = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
    yield from (range(start, stop) for start, stop in pairwise(edges) if start < stop)
