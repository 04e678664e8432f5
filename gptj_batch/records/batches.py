"""The record batches of a row range of one file: Parquet, Arrow file or Arrow stream, with memory that stays flat."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from gptj_batch.errors import shorten
from gptj_batch.records.locate import locate

_BATCH_ROWS = 1024  # what is decoded at once: a long text has some 10 KB
_BUFFER_BYTES = 1024 * 1024  # what is read at once of a column
_ARROW_FILE_MAGIC = b"ARROW1"


def open_source(path: str, file_format: str) -> Any:
    """Open a file for random access.

    Arrow files on a disk are mapped: skipping to a row then touches no data. A Parquet file is not, since a mapped file
    that is cut while it is read ends the process.
    """
    place = locate(path)
    if file_format == "arrow" and isinstance(place.filesystem, fs.LocalFileSystem):
        return pa.memory_map(place.path)
    return place.filesystem.open_input_file(place.path)


def open_parquet(source: Any) -> Any:
    """Open a Parquet source for streaming, its pages checked where the file has checksums."""
    return pq.ParquetFile(
        source, memory_map=False, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
    )


def parquet_batches(file: Any, columns: Sequence[str], start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Yield rows start to stop of an open Parquet file, touching only the row groups that overlap them."""
    groups, first = overlapping_groups(file.metadata, start, stop)
    # Each by itself: a batch over two of them cannot have a dictionary inside of a list or a struct.
    batches = chain.from_iterable(
        file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False)
        for group in groups
    )
    return _cut(batches, start - first, stop - first)


def damaged_chunk(file: Any, columns: Sequence[str], start: int, stop: int) -> str:
    """Return where in rows start to stop a Parquet file is damaged: ' in row group 3, column "text"', or nothing."""
    for group in overlapping_groups(file.metadata, start, stop)[0]:
        for column in columns:
            try:
                file.read_row_group(group, columns=[column], use_threads=False)
            except (OSError, pa.ArrowException):
                return f' in row group {group}, column "{shorten(column, 40)}"'
    return ""


def overlapping_groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """Return the row groups that hold rows start to stop, and the number of the first row in them."""
    groups: list[int] = []
    first, row = 0, 0
    for group in range(metadata.num_row_groups):
        end = row + metadata.row_group(group).num_rows
        if row < stop and end > start:
            first = first if groups else row
            groups.append(group)
        row = end
    return groups, first


def open_arrow(source: Any, columns: Sequence[str] | None = None) -> Any:
    """Open an Arrow source, file or stream, reading only `columns`; both kinds of reader have a schema."""
    opener = pa.ipc.open_file if _is_arrow_file(source) else pa.ipc.open_stream
    if columns is None:
        return opener(source)
    source.seek(0)
    names = opener(source).schema.names
    source.seek(0)
    return opener(source, options=pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns]))


def _is_arrow_file(source: Any) -> bool:
    source.seek(0)
    magic = source.read(len(_ARROW_FILE_MAGIC))
    source.seek(0)
    return bool(magic == _ARROW_FILE_MAGIC)


def count_arrow_rows(source: Any) -> int:
    """Return the number of rows; a stream has no footer, so it is read to its end."""
    reader = open_arrow(source)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return int(reader.count_rows())
    return sum(batch.num_rows for batch in reader)


def arrow_batches(source: Any, columns: Sequence[str], start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Yield rows start to stop of an Arrow source, each batch checked against offsets that lead outside of it."""
    reader = open_arrow(source, columns)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        batches: Iterator[pa.RecordBatch] = map(reader.get_batch, range(reader.num_record_batches))
    else:
        batches = iter(reader)
    for batch in _cut(batches, start, stop):
        for column in batch.columns:
            _validate(column)
        yield batch


def _validate(column: pa.Array) -> None:
    """Raise ArrowInvalid for damaged offsets. Invalid UTF-8 passes: it is the row's error, not the file's."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise


def _cut(batches: Iterator[pa.RecordBatch], start: int, stop: int) -> Iterator[pa.RecordBatch]:
    row = 0
    for batch in batches:
        end = row + batch.num_rows
        if end > start and batch.num_rows:
            yield batch.slice(max(start - row, 0), min(end, stop) - max(start, row))
        row = end
        if row >= stop:
            return
