"""Writing one part: Parquet, an Arrow IPC file or JSON lines, table by table."""

from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, Protocol

import pyarrow as pa

from gptj_batch.errors import OutputError
from gptj_batch.records.json_rows import json_lines
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.part_reader import count_rows
from gptj_batch.records.schema import nested_fields, one_dictionary
from gptj_batch.records.write import parquet_writer


class PartWriter(Protocol):
    """One part that is being written."""

    @property
    def size_bytes(self) -> int:
        """Return how many bytes are written so far."""

    def take(self, table: pa.Table) -> bool:
        """Write the table, which has rows, and return True; False where only a new part can hold it."""

    def close(self) -> None:
        """Write what belongs at the end, and close the file; a second time does nothing."""


def open_part(path: Path, schema: pa.Schema, form: PartForm) -> PartWriter:
    """Begin a part. Raises OSError or ArrowException, as writing does."""
    if form.format == "parquet":
        return _ParquetPart(path, schema, form)
    return _ArrowPart(path, schema, form) if form.format == "arrow" else _JsonLinesPart(path, form)


def check_part(staged: Path, final: PurePath, form: PartForm, num_rows: int) -> None:
    """Raise OutputError unless the part on the disk has `num_rows` rows."""
    found = count_rows(staged, form.ending)
    if found != num_rows:
        raise OutputError(
            f"output.path: {final} cannot be written: {num_rows} rows were written and {found} are in it. Check the "
            "file system, then run the same command again; finished units are kept"
        )


def close_quietly(writer: PartWriter) -> None:
    """Close a part that is not wanted any more."""
    with suppress(OSError, pa.ArrowException):
        writer.close()


class _ParquetPart:
    def __init__(self, path: Path, schema: pa.Schema, form: PartForm) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = parquet_writer(self._sink, schema, form.compression)

    @property
    def size_bytes(self) -> int:
        return _tell(self._sink)

    def take(self, table: pa.Table) -> bool:
        self._writer.write_table(table, row_group_size=table.num_rows)
        return True

    def close(self) -> None:
        self._writer.close()
        self._sink.close()


class _ArrowPart:
    """An IPC file has one dictionary a column, which may only grow: each table's is joined to that of those before."""

    def __init__(self, path: Path, schema: pa.Schema, form: PartForm) -> None:
        codec = None if form.compression == "none" else form.compression
        options = pa.ipc.IpcWriteOptions(compression=codec, emit_dictionary_deltas=True)
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema, options=options)
        self._has_dictionaries = any(pa.types.is_dictionary(field.type) for field in nested_fields(schema))
        self._first_row: pa.Table | None = None  # with the dictionaries so far

    @property
    def size_bytes(self) -> int:
        return _tell(self._sink)

    def take(self, table: pa.Table) -> bool:
        if self._has_dictionaries:
            before = [] if self._first_row is None else [self._first_row]
            joined = one_dictionary(pa.concat_tables([*before, table]))
            if joined is None:
                return False
            self._first_row, table = joined.slice(0, 1), joined.slice(len(before))
        self._writer.write_table(_in_one_chunk(table))
        return True

    def close(self) -> None:
        self._writer.close()
        self._sink.close()


class _JsonLinesPart:
    def __init__(self, path: Path, form: PartForm) -> None:
        self._file = pa.OSFile(str(path), "wb")
        plain = form.compression == "none"
        self._sink = self._file if plain else pa.CompressedOutputStream(self._file, form.compression)

    @property
    def size_bytes(self) -> int:
        return _tell(self._file)

    def take(self, table: pa.Table) -> bool:
        for text in json_lines(table):
            self._sink.write(text.encode("utf-8"))
        return True

    def close(self) -> None:
        self._sink.close()
        self._file.close()


def _in_one_chunk(table: pa.Table) -> pa.Table:
    try:
        return table.combine_chunks()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return table  # good as well, in more record batches


def _tell(sink: Any) -> int:
    return int(sink.tell())
