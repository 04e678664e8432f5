"""An input file as it describes itself: rows, bytes, columns, or the reason why it cannot be read.

Parquet and Arrow files say it in their footers. Files of text are read once from end to end, for their rows and types.
"""

import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.errors import shorten
from gptj_batch.records.batches import count_arrow_rows, open_arrow, open_source
from gptj_batch.records.csv_text import scan_csv
from gptj_batch.records.formats import TITLES, FileFormat
from gptj_batch.records.jsonl import scan_jsonl
from gptj_batch.records.locate import FoundFile
from gptj_batch.records.marks import Marks
from gptj_batch.records.schema import name_list, nested_fields
from gptj_batch.records.text import BadTextError

_NUM_THREADS = 16  # footers in a bucket are one or two round trips each
_NUM_SCANS = 4  # files of text keep a core busy, and each holds some megabytes
# Types whose values are pickles: reading them would run code that the file brings along.
_PICKLED = ("ray.data.arrow_pickled_object", "arrow.py_extension_type")


@dataclass(frozen=True)
class InputFile:
    """A file that can be read.

    schema: its own columns, then those of its partition; in `InputFiles` the run's    version: what tells one content
    from another where there is no `mtime_ns`    partition: the values in its folders' names
    marks, header: of a file of text, where its rows are, and of CSV its column names
    """

    path: str
    format: FileFormat
    num_rows: int
    size_bytes: int
    mtime_ns: int
    schema: pa.Schema
    version: str = ""
    partition: tuple[tuple[str, str | None], ...] = ()
    marks: Marks | None = field(default=None, repr=False)
    header: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be read, and the rule it breaks."""

    path: str
    size_bytes: int
    rule: str

    def __str__(self) -> str:
        return f"{self.path} ({self.size_bytes} bytes): {self.rule}"


@dataclass(frozen=True)
class InputFiles:
    """The files of a run, sorted by path, and the bad ones that were left out.

    schema: that of all files, see `merge`
    """

    files: tuple[InputFile, ...]
    skipped: tuple[BadFile, ...]
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        """Return the number of rows of all files."""
        return sum(file.num_rows for file in self.files)

    @property
    def size_bytes(self) -> int:
        """Return the size of all files as they lie on the disk."""
        return sum(file.size_bytes for file in self.files)


def inspect_files(found: Sequence[tuple[FoundFile, FileFormat]]) -> list[InputFile | BadFile]:
    """Read the footer, or all, of every file; the answers are in the order of the files."""
    is_text = any(file_format in ("jsonl", "csv") for _, file_format in found)
    with ThreadPoolExecutor(max_workers=_NUM_SCANS if is_text else _NUM_THREADS) as pool:
        return list(pool.map(lambda pair: _inspect(*pair), found))


def _inspect(file: FoundFile, file_format: FileFormat) -> InputFile | BadFile:
    if file.size_bytes == 0:
        return BadFile(file.path, 0, "the file is empty")
    try:
        answer = _described(file, file_format)
    except (OSError, pa.ArrowException, BadTextError, UnicodeError) as error:
        return BadFile(file.path, file.size_bytes, _rule(error, file_format))
    if broken := _broken_rule(answer.schema, [name for name, _ in file.partition]):
        return BadFile(file.path, file.size_bytes, broken)
    return answer


def _described(file: FoundFile, file_format: FileFormat) -> InputFile:
    marks, header = None, tuple[str, ...]()
    if file_format == "jsonl":
        num_rows, schema, marks = scan_jsonl(file.path)
    elif file_format == "csv":
        num_rows, schema, marks, header = scan_csv(file.path)
    else:
        with open_source(file.path, file_format) as source:
            num_rows, schema = _parquet_footer(source) if file_format == "parquet" else _arrow_footer(source)
    return InputFile(
        file.path,
        file_format,
        num_rows,
        file.size_bytes,
        file.mtime_ns,
        schema,
        version=file.version,
        partition=file.partition,
        marks=marks,
        header=header,
    )


def _parquet_footer(source: Any) -> tuple[int, pa.Schema]:
    with pq.ParquetFile(source, memory_map=False, pre_buffer=False) as file:
        return file.metadata.num_rows, file.schema_arrow


def _arrow_footer(source: Any) -> tuple[int, pa.Schema]:
    return count_arrow_rows(source), open_arrow(source).schema


def _rule(error: Exception, file_format: FileFormat) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT):
        return str(error)
    if isinstance(error, BadTextError):
        return str(error)
    reason = shorten(" ".join(str(error).split()).rstrip("."), 200)
    return f"not a whole {TITLES[file_format]} file: {reason}"


def _broken_rule(schema: pa.Schema, partition: Sequence[str]) -> str | None:
    """Return why no table can be made of these columns and those of the file's partition, if so."""
    if twice := [name for name in partition if name in schema.names]:
        return (
            f"it has a column {name_list(twice)}, and so has its folder's name; leave one out (name the partition's "
            "folder in input.path to leave out that of its name)"
        )
    if repeated := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        return f"it has more than one column called {name_list(repeated)}"
    for column in nested_fields(schema):
        if pickled := next((name for name in _extension_names(column) if name in _PICKLED), None):
            return f'"{shorten(column.name, 40)}" has the type {pickled}, whose values are pickles; they are refused'
    return None


def _extension_names(field: pa.Field) -> list[str]:
    """Return what the field's type is called; one that nobody registered is a plain type with a name beside it."""
    beside = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode(errors="replace")
    return [beside, getattr(field.type, "extension_name", "")]
