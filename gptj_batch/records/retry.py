"""Failed rows of a finished output: taken out to be done again, and what became of them put back in their places.

`_gptj_batch/retry/` holds, until a retry is over, the folder `rows` with what is to be done and the folder `output` of
an ordinary run over it. Every step can be the last of a process and is done again by the next:
    1. rows            written beside, and moved there as one folder
    2. output          a run of its own, which resumes
    3. parts           each is written beside and renamed; doing it again writes the same
    4. the report, and the folder away
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gptj_batch.errors import OutputError, shorten
from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.write import check_num_rows, parquet_writer, row_groups

# Where a row stands in the output, and what it was called when it was done first.
PART, ROW, KEY = "gptj_batch_retry_part", "gptj_batch_retry_row", "gptj_batch_retry_key"

Keys = Callable[[pa.Table, int], pa.Array]
"""Returns the keys of a table's rows, from the number of its first row in the whole output."""


class RetryFolder:
    """The folder of an output's retry."""

    def __init__(self, output: str | Path) -> None:
        self._folder = OutputFolder.at(output)
        self._root = Path(self._folder.private) / "retry"  # of an output in a bucket, nothing is done again

    @property
    def rows(self) -> Path:
        """Return the folder of the rows that are to be done again."""
        return self._root / "rows"

    @property
    def output(self) -> Path:
        """Return the output of the run that does them."""
        return self._root / "output"

    @property
    def is_open(self) -> bool:
        """Say whether a retry was begun and has not ended."""
        return self.rows.is_dir()

    def remove(self) -> None:
        """Remove everything of it, the rows first: without them, it has not begun."""
        shutil.rmtree(self.rows, ignore_errors=True)
        shutil.rmtree(self._root, ignore_errors=True)

    def take_out(self, added: Sequence[str], error_column: str, keys: Keys) -> int:
        """Write the failed rows with the columns that they came with, and return how many they are.

        added: the columns that the task added    Raises OutputError.
        """
        staged = self._root / f"rows-{uuid4().hex}"
        num_rows = first_row = 0
        shutil.rmtree(self._root, ignore_errors=True)  # what an earlier retry could not remove
        try:
            staged.mkdir(parents=True)
            for number, part in enumerate(map(Path, self._folder.parts())):
                with _open(part) as file:
                    failed = [
                        _failed_rows(table, part.name, start, added, error_column, keys, first_row)
                        for table, start in _row_groups(file, part)
                    ]
                    first_row += file.metadata.num_rows
                table = pa.concat_tables(failed) if failed else None
                if table is not None and table.num_rows:
                    num_rows += table.num_rows
                    pq.write_table(table, staged / f"rows-{number:08d}.parquet", compression="zstd")
            if num_rows:
                staged.replace(self.rows)
        except (OSError, pa.ArrowException) as error:
            raise not_written(self.rows, error) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return num_rows

    def put_back(self, added: Sequence[str], compression: str, check: Callable[[], None]) -> None:
        """Put what became of the rows into their parts, part by part.

        check: is called before each part, and raises where the output is not ours any more    Raises OutputError.
        """
        for name, done in self._done([ROW, *added]):
            check()
            self._rewrite(Path(self._folder.root) / name, done, added, compression)

    def _done(self, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """Yield the name of every part that has retried rows, with these rows, in their order."""
        waiting: list[pa.Table] = []
        name = ""
        for file in map(Path, OutputFolder.at(self.output).parts()):
            with _open(file) as opened:
                for table, _ in _row_groups(opened, file, [PART, *columns]):
                    for run in _runs_of_equals(table.column(PART)):
                        piece = table.slice(run.start, len(run))
                        if waiting and piece.column(PART)[0].as_py() != name:
                            yield name, pa.concat_tables(waiting)
                            waiting = []
                        name = piece.column(PART)[0].as_py()
                        waiting.append(piece)
        if waiting:
            yield name, pa.concat_tables(waiting)

    def _rewrite(self, part: Path, done: pa.Table, added: Sequence[str], compression: str) -> None:
        places = done.column(ROW).to_numpy()
        with self._folder.whole_file(part) as staged, _open(part) as file:
            with parquet_writer(staged, file.schema_arrow, compression) as writer:
                for table, start in _row_groups(file, part):
                    low, high = np.searchsorted(places, (start, start + table.num_rows))
                    table = _replaced(table, places[low:high] - start, done.slice(low, high - low), added)
                    for group in row_groups(table):
                        writer.write_table(group, row_group_size=max(group.num_rows, 1))
            check_num_rows(staged, part, file.metadata.num_rows)


def _failed_rows(
    table: pa.Table, part: str, start: int, added: Sequence[str], error_column: str, keys: Keys, first_row: int
) -> pa.Table:
    """Return a row group's failed rows, without what the task added, and with their addresses."""
    mask = pc.is_valid(table.column(error_column))
    places = pa.array(np.arange(start, start + table.num_rows, dtype=np.int64))
    names = keys(table, first_row + start)
    table = table.drop_columns(list(added))
    for name, values in ((PART, pa.array([part] * table.num_rows, pa.string())), (ROW, places), (KEY, names)):
        table = table.append_column(name, values)
    return pa.concat_tables([table.slice(0, 0), *(table.slice(run.start, len(run)) for run in _runs(mask))])


def _runs(mask: pa.ChunkedArray) -> Iterator[range]:
    """Yield the runs of places where the mask is true: not every type can be filtered, and every one can be sliced."""
    edges = np.flatnonzero(np.diff(mask.to_numpy().astype(np.int8), prepend=0, append=0))
    yield from (range(int(start), int(stop)) for start, stop in edges.reshape(-1, 2))


def _replaced(table: pa.Table, places: NDArray[np.int64], done: pa.Table, added: Sequence[str]) -> pa.Table:
    """Return the table with the columns that the task added, in some places, taken from `done`."""
    indices = np.arange(table.num_rows)
    indices[places] = table.num_rows + np.arange(len(places))
    for name in added:
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        both = pa.chunked_array([*table.column(place).chunks, *done.column(name).cast(field.type).chunks], field.type)
        table = table.set_column(place, field, both.take(pa.array(indices)))
    return table


def _open(part: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(part, pre_buffer=False, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(part, error) from error


def _runs_of_equals(column: pa.ChunkedArray) -> Iterator[range]:
    names = np.array(column.to_pylist())
    edges = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
    yield from (range(start, stop) for start, stop in pairwise(edges) if start < stop)


def _row_groups(
    file: pq.ParquetFile, part: Path, columns: Sequence[str] | None = None
) -> Iterator[tuple[pa.Table, int]]:
    """Yield every row group and the place of its first row in the part."""
    start = 0
    for number in range(file.num_row_groups):
        try:
            table = file.read_row_group(number, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(part, error) from error
        yield table, start
        start += table.num_rows


def _unreadable(part: Path, error: Exception) -> OutputError:
    reason = shorten(" ".join(str(error).split()), 200)
    return OutputError(
        f"output.path: {part} cannot be read: {reason}. Nothing was changed; run the job anew with "
        "output.on_exists=overwrite"
    )
