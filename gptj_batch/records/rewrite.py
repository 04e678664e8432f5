"""Rewriting a part: the columns that a task added are replaced in some rows, and all else stays as it is."""

import errno
from collections.abc import Callable, Iterator, Sequence
from json import JSONEncoder
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gptj_batch.errors import OutputError, shorten
from gptj_batch.records.json_rows import json_lines
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.part_reader import arrow_source, count_rows, lines_of, source_of
from gptj_batch.records.part_writer import check_part, close_quietly, open_part
from gptj_batch.records.store import BucketPath
from gptj_batch.records.write import row_groups

Places = NDArray[np.int64]
_quoted = JSONEncoder(ensure_ascii=False).encode


def rewrite_part(
    folder: OutputFolder,
    part: PurePath,
    places: Places,
    done: pa.Table,
    added: Sequence[str],
    form: PartForm,
    check: Callable[[], None],
) -> None:
    """Write a part anew, with the columns `added` of `done` in the rows `places`, ascending.

    check: is called when it is written, before it is stored: a large part takes its time until then

    It appears whole; doing it again gives the same. Raises OutputError, and what `check` raises.
    """
    try:
        num_rows = count_rows(part, form.ending)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(part, error) from error
    with folder.whole_file(part) as staged:
        if form.format == "jsonl":
            _rewrite_lines(part, staged, places, done, added, form)
        else:
            _rewrite_tables(part, staged, places, done, added, form)
        check_part(staged, part, form, num_rows)
        check()


def _rewrite_tables(
    part: PurePath, staged: Path, places: Places, done: pa.Table, added: Sequence[str], form: PartForm
) -> None:
    schema, tables = _tables(part, form)
    writer = open_part(staged, schema, form)
    try:
        for table, start in tables:
            low, high = np.searchsorted(places, (start, start + table.num_rows))
            table = _replaced(table, places[low:high] - start, done.slice(low, high - low), added)
            for group in row_groups(table):
                taken = not group.num_rows or writer.take(group)
                assert taken, "its dictionaries were in one file before"
        writer.close()
    finally:
        close_quietly(writer)


def _tables(part: PurePath, form: PartForm) -> tuple[pa.Schema, Iterator[tuple[pa.Table, int]]]:
    if form.format == "parquet":
        file = open_parquet_part(part)
        return file.schema_arrow, parquet_tables(file, part)
    try:
        reader = pa.ipc.open_file(arrow_source(part))
    except (OSError, pa.ArrowException) as error:
        raise unreadable(part, error) from error
    return reader.schema, _batches(reader)


def _batches(reader: pa.ipc.RecordBatchFileReader) -> Iterator[tuple[pa.Table, int]]:
    start = 0
    for number in range(reader.num_record_batches):
        table = pa.Table.from_batches([reader.get_batch(number)])
        yield table, start
        start += table.num_rows


def _replaced(table: pa.Table, places: Places, done: pa.Table, added: Sequence[str]) -> pa.Table:
    """Return the table with the columns that the task added, in some places, taken from `done`."""
    indices = np.arange(table.num_rows)
    indices[places] = table.num_rows + np.arange(len(places))
    for name in added:
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        both = pa.chunked_array([*table.column(place).chunks, *done.column(name).cast(field.type).chunks], field.type)
        table = table.set_column(place, field, both.take(pa.array(indices)))
    return table


def _rewrite_lines(
    part: PurePath, staged: Path, places: Places, done: pa.Table, added: Sequence[str], form: PartForm
) -> None:
    """Replace the ends of lines: what a task added stands behind the input's columns, all null but the error.

    So the text of what was read stays, byte for byte. A line without such an end was replaced before.
    """
    texts = "".join(json_lines(done.select(list(added)))).encode("utf-8").splitlines()
    ends = dict(zip(places.tolist(), texts, strict=True))
    failed = ",".join(f"{_quoted(name)}:null" for name in added[:-1]).encode("utf-8")
    marker = failed + b"," * bool(failed) + f"{_quoted(added[-1])}:".encode()
    with pa.OSFile(str(staged), "wb") as file:
        sink = file if form.compression == "none" else pa.CompressedOutputStream(file, form.compression)
        for row, line in enumerate(lines_of(part, form.ending)):
            place = line.rfind(marker) if row in ends else -1
            sink.write((line if place < 0 else line[:place] + ends[row][1:]) + b"\n")
        sink.close()


def open_parquet_part(part: PurePath) -> pq.ParquetFile:
    """Open a part. Raises OutputError."""
    try:
        return pq.ParquetFile(source_of(part), pre_buffer=False, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(part, error) from error


def parquet_tables(
    file: pq.ParquetFile, part: PurePath, columns: Sequence[str] | None = None, values_in: str | None = None
) -> Iterator[tuple[pa.Table, int]]:
    """Yield every row group of an open part, and the place of its first row in the part.

    values_in: a column; groups of which the footer says that all of it is null are left out, and not read

    Raises OutputError.
    """
    start = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if values_in is not None and _is_null(group, values_in):
            start += group.num_rows
            continue
        try:
            table = file.read_row_group(number, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(part, error) from error
        yield table, start
        start += table.num_rows


def _is_null(group: pq.RowGroupMetaData, name: str) -> bool:
    columns = [group.column(place) for place in range(group.num_columns)]
    found = [column.statistics for column in columns if column.path_in_schema == name]
    return bool(found) and all(
        each is not None and each.has_null_count and each.null_count == group.num_rows for each in found
    )


def unreadable(part: PurePath, error: Exception) -> OutputError:
    """Return the error for a part that is damaged, or that a bucket does not give out now."""
    reason = shorten(" ".join(str(error).split()), 200)
    if isinstance(part, BucketPath) and isinstance(error, OSError) and error.errno in (errno.EIO, errno.EACCES):
        return OutputError(f"output.path: {part} cannot be read: {reason}. Run the same command again when it can be")
    return OutputError(
        f"output.path: {part} cannot be read: {reason}. Nothing was changed; run the job anew with "
        "output.on_exists=overwrite"
    )
