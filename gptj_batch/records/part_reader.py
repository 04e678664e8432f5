"""Reading a finished part: its number of rows, and one column of it, whatever its format."""

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.records.output import OutputFolder, store_of
from gptj_batch.records.partitions import value_in_path

_CODECS = {".gz": "gzip", ".zst": "zstd"}


def count_rows(path: PurePath, ending: str) -> int:
    """Return how many rows a part has, from its footer or by its lines. Raises OSError or ArrowException."""
    if ending == ".parquet":
        return int(pq.read_metadata(source_of(path)).num_rows)
    if ending == ".arrow":
        with arrow_source(path) as source, pa.ipc.open_file(source) as file:
            return sum(file.get_batch(i).num_rows for i in range(file.num_record_batches))
    return sum(1 for _ in lines_of(path, ending))


def read_column(folder: OutputFolder, part: PurePath, name: str) -> pa.ChunkedArray:
    """Return a column of a part or of a unit; a partition's column as text, what JSON nests as null.

    Raises KeyError where there is no such column, OSError or ArrowException where the file cannot be read.
    """
    ending = "".join(part.suffixes)
    in_path, value = value_in_path(part.relative_to(folder.root), name)
    if in_path:
        return pa.chunked_array([pa.repeat(pa.scalar(value, pa.string()), count_rows(part, ending))])
    if ending == ".parquet":
        return pq.read_table(source_of(part), columns=[name], partitioning=None).column(name)
    if ending == ".arrow":
        with arrow_source(part) as source, pa.ipc.open_file(source) as file:
            index = file.schema.get_field_index(name)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
            return pa.chunked_array([batch.column(index) for batch in batches], file.schema.field(index).type)
    values = [json.loads(line)[name] for line in lines_of(part, ending)]
    return pa.chunked_array([pa.array([_flat(value) for value in values])])


def source_of(path: PurePath) -> Any:
    """Return what pyarrow reads a part from. Raises OSError."""
    return store_of(path).source(path)


def arrow_source(path: PurePath) -> Any:
    """Return what pyarrow reads an Arrow file from, to be used in a `with` statement. Raises OSError."""
    source = source_of(path)
    return pa.memory_map(source) if isinstance(source, str) else pa.PythonFile(source, mode="r")


def _flat(value: Any) -> Any:
    return None if isinstance(value, list | dict) else value


def lines_of(path: PurePath, ending: str) -> Iterator[bytes]:
    """Yield the lines of a part of JSON lines, without their ends."""
    codec = _CODECS.get(ending.removeprefix(".jsonl"))
    with pa.input_stream(source_of(path), compression=codec) as stream:
        rest = b""
        while block := stream.read(2**20):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
        assert not rest, "the last line ends as the others do"
