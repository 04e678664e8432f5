"""An input file, as its footer describes it: rows, bytes, columns, or the reason why it cannot be read."""

import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.errors import InputError, shorten
from gptj_batch.records.batches import count_arrow_rows, open_arrow, open_source
from gptj_batch.records.locate import FoundFile
from gptj_batch.records.schema import name_list, nested_fields

FileFormat = Literal["parquet", "arrow"]

_NUM_THREADS = 16  # footers in a bucket are one or two round trips each
# Types whose values are pickles: reading them would run code that the file brings along.
_PICKLED = ("ray.data.arrow_pickled_object", "arrow.py_extension_type")


@dataclass(frozen=True)
class InputFile:
    """A file that can be read."""

    path: str
    format: FileFormat
    num_rows: int
    size_bytes: int
    mtime_ns: int
    schema: pa.Schema


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

    schema: the first file's, which all share up to order and metadata
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
    """Read the footer of every file; the answers are in the order of the files."""
    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        return list(pool.map(lambda pair: _inspect(*pair), found))


def _inspect(file: FoundFile, file_format: FileFormat) -> InputFile | BadFile:
    if file.size_bytes == 0:
        return BadFile(file.path, 0, "the file is empty")
    try:
        with open_source(file.path, file_format) as source:
            num_rows, schema = _parquet_footer(source) if file_format == "parquet" else _arrow_footer(source)
    except (OSError, pa.ArrowException) as error:
        return BadFile(file.path, file.size_bytes, _rule(error, file_format))
    if broken := _broken_rule(schema):
        return BadFile(file.path, file.size_bytes, broken)
    return InputFile(file.path, file_format, num_rows, file.size_bytes, file.mtime_ns, schema)


def _parquet_footer(source: Any) -> tuple[int, pa.Schema]:
    with pq.ParquetFile(source, memory_map=False, pre_buffer=False) as file:
        return file.metadata.num_rows, file.schema_arrow


def _arrow_footer(source: Any) -> tuple[int, pa.Schema]:
    return count_arrow_rows(source), open_arrow(source).schema


def _rule(error: Exception, file_format: FileFormat) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT):
        return str(error)
    reason = shorten(" ".join(str(error).split()), 200)
    return f"not a whole {file_format.capitalize()} file: {reason}"


def _broken_rule(schema: pa.Schema) -> str | None:
    """Return why no table can be made of these columns, if so."""
    if repeated := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        return f"it has more than one column called {name_list(repeated)}"
    for field in nested_fields(schema):
        if pickled := next((name for name in _extension_names(field) if name in _PICKLED), None):
            return f'"{shorten(field.name, 40)}" has the type {pickled}, whose values are pickles; they are refused'
    return None


def _extension_names(field: pa.Field) -> list[str]:
    """Return what the field's type is called; one that nobody registered is a plain type with a name beside it."""
    beside = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode(errors="replace")
    return [beside, getattr(field.type, "extension_name", "")]


def agreed_schema(files: Sequence[InputFile]) -> pa.Schema:
    """Return the first file's schema, which all files must share up to the order of columns, metadata and nullability.

    A column that holds nothing but nulls may have no type in some files (pandas writes it so). Raises InputError naming
    both files, the column and both types.
    """
    agreed = {field.name: field for field in files[0].schema}
    origin = dict.fromkeys(agreed, files[0])
    for file in files[1:]:
        here = {field.name: field for field in file.schema}
        for name in [*agreed, *here]:
            if name not in agreed or name not in here or not _fit(agreed[name], here[name]):
                raise _disagreement(name, origin.get(name, files[0]), file)
            if pa.types.is_null(agreed[name].type):
                agreed[name], origin[name] = agreed[name].with_type(here[name].type), file
            if here[name].nullable and not agreed[name].nullable:
                agreed[name] = agreed[name].with_nullable(True)
    return pa.schema(list(agreed.values()), metadata=files[0].schema.metadata)


def _fit(one: pa.Field, other: pa.Field) -> bool:
    return bool(one.type.equals(other.type)) or pa.types.is_null(one.type) or pa.types.is_null(other.type)


def _disagreement(name: str, first: InputFile, other: InputFile) -> InputError:
    return InputError(
        f'input.path: the files do not agree on column "{shorten(name, 40)}": it is {_kind(first, name)} in '
        f"{first.path} and {_kind(other, name)} in {other.path}. Write both with the same columns, or keep only the "
        "files that agree in input.path"
    )


def _kind(file: InputFile, name: str) -> str:
    return shorten(file.schema.field(name).type, 120) if name in file.schema.names else "missing"
