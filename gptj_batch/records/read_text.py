"""A unit's rows of a file of text.

A process that reads one unit of a compressed file after the other keeps the file open: going on costs the bytes that
lie between, where beginning anew would cost all of them for every unit.
"""

from functools import lru_cache
from threading import get_ident

import pyarrow as pa
from pyarrow import fs

from gptj_batch.records.csv_text import HEADER_ROW, csv_table
from gptj_batch.records.formats import FileFormat, compression_of, delimiter_of
from gptj_batch.records.jsonl import jsonl_table
from gptj_batch.records.locate import locate
from gptj_batch.records.plan import Unit
from gptj_batch.records.text import BadTextError, Records, TextStream, csv_splitter, split_lines


def read_text(unit: Unit, schema: pa.Schema) -> pa.Table:
    """Return a unit's rows, in those columns of `schema` that its file may have.

    Raises BadTextError, OSError, ArrowInvalid for a file that is not what was planned.
    """
    place = locate(unit.path)
    info = place.filesystem.get_file_info(place.path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError("No such file or directory")
    if info.size != unit.file_bytes:
        raise unit.changed(f"{unit.file_bytes} bytes then, {info.size} now")
    if compression_of(unit.path) is None:
        stream = _open(unit.path, unit.format)
        try:
            return _rows(stream, unit, schema)
        finally:
            stream.close()
    stream = _kept_open(unit.path, unit.format, info.size, info.mtime_ns, get_ident())
    try:
        return _rows(stream, unit, schema)
    except (OSError, pa.ArrowException, ValueError):
        _kept_open.cache_clear()  # it stands nobody knows where
        raise


def _open(path: str, file_format: FileFormat) -> TextStream:
    if file_format == "jsonl":
        return TextStream(path, split_lines)
    return TextStream(path, csv_splitter(delimiter_of(path)), first_row=HEADER_ROW)


@lru_cache(maxsize=2)
def _kept_open(path: str, file_format: FileFormat, size_bytes: int, mtime_ns: int | None, thread: int) -> TextStream:
    """Return a compressed file that stays open in this thread; size and time tell it from a later one of its name."""
    return _open(path, file_format)


def _rows(stream: TextStream, unit: Unit, schema: pa.Schema) -> pa.Table:
    stream.go(unit.start, *unit.mark)
    if stream.row != unit.start:
        raise BadTextError("the file has fewer rows than it had")
    tables = [_table(records, unit, schema) for records in stream.take(unit.num_rows)]
    return pa.concat_tables(tables)


def _table(records: Records, unit: Unit, schema: pa.Schema) -> pa.Table:
    # A table without columns has no rows, so one column is read in any case.
    if unit.format == "jsonl":
        own = [field for field in schema if field.name not in dict(unit.partition)] or [pa.field("", pa.null())]
        return jsonl_table(records, pa.schema(own))
    own = [field for field in schema if field.name in unit.header] or [pa.field(unit.header[0], pa.string())]
    return csv_table(records, unit.header, delimiter_of(unit.path), pa.schema(own))
