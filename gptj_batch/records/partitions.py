"""Hive partitions: the folders `column=value` that rows go to, and which columns can name them."""

import json
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from pathlib import PurePath
from urllib.parse import quote_from_bytes, unquote

import pyarrow as pa
from pyarrow import types

from gptj_batch.errors import ConfigError, OutputError, shorten
from gptj_batch.records.schema import name_list
from gptj_batch.records.write import row_groups

# What Hive and Spark call the partition of rows without a value; an empty text goes there too, as with them.
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_MAX_FOLDER_BYTES = 255


def check_partitions(schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise ConfigError unless each of `columns` is one of the output's and its values can name a folder."""
    for name in columns:
        if name not in schema.names:
            raise ConfigError(
                f'output.partition_by: the output has no column "{name}"; it has {name_list(schema.names)}'
            )
        if not _can_name_a_folder(schema.field(name).type):
            raise ConfigError(
                f'output.partition_by: "{name}" is {shorten(schema.field(name).type)}; partitions are by text, whole '
                "numbers, booleans, decimals, dates or timestamps"
            )
        if name[0] in "_.":
            raise ConfigError(
                f'output.partition_by: readers take no folder whose name begins with "{name[0]}", as that of "{name}" '
                "would; partition by another column, or choose another output.prefix"
            )
    if columns and not set(schema.names) - set(columns):
        raise ConfigError("output.partition_by: it names every column, so that none would be left for the files")


def _can_name_a_folder(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return _is_text(kind) or any(
        rule(kind) for rule in (types.is_integer, types.is_boolean, types.is_decimal, types.is_date, types.is_timestamp)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def partition_rows(table: pa.Table, columns: Sequence[str]) -> dict[str, list[int]]:
    """Return each partition's folder, `a=1/b=x`, with the numbers of its rows. Raises OutputError for long values."""
    folders = zip(*(_folders(name, table.column(name)) for name in columns), strict=True)
    rows: dict[str, list[int]] = {}
    for row, names in enumerate(folders):
        rows.setdefault("/".join(names), []).append(row)
    return rows


def _folders(name: str, column: pa.ChunkedArray) -> list[str]:
    """Return the folder of every row; nothing of a value can leave it, or be taken for two folders."""
    values = _bytes(column).to_pylist()
    quoted = {value: _folder(name, value) for value in set(values)}
    return [quoted[value] for value in values]


def _bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not _is_text(column.type):
        column = column.cast(pa.string())
    return column.cast(pa.large_binary())  # text as it is: nobody checked that it is UTF-8


def _folder(name: str, value: bytes | None) -> str:
    folder = f"{quote_from_bytes(name.encode(), safe='')}={quote_from_bytes(value, safe='') if value else NO_VALUE}"
    if len(folder) > _MAX_FOLDER_BYTES:
        raise OutputError(
            f'output.partition_by: "{name}" has a value of {len(value or b"")} bytes, too long for the name of a '
            "folder; choose another output.partition_by and run again: finished units are kept"
        )
    return folder


def value_in_path(path: PurePath, name: str) -> tuple[bool, str | None]:
    """Tell whether a part's path has a value for the column, and return it."""
    for folder in path.parts[:-1]:
        key, is_partition, value = folder.partition("=")
        if is_partition and unquote(key) == name:
            return True, None if value == NO_VALUE else unquote(value, errors="replace")
    return False, None


def without_columns(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """Return the schema of files in partitions; what pandas wrote down of the columns goes with them.

    pandas would else make its own types of what a reader takes from the folders' names, and fail.
    """
    metadata = dict(schema.metadata or {})
    with suppress(KeyError, TypeError, ValueError):
        notes = json.loads(metadata[b"pandas"])
        notes["columns"] = [note for note in notes["columns"] if note["field_name"] not in columns]
        notes["index_columns"] = [name for name in notes["index_columns"] if name not in columns]
        metadata[b"pandas"] = json.dumps(notes).encode()
    return pa.schema([field for field in schema if field.name not in columns], metadata or None)


def split(
    table: pa.Table, columns: Sequence[str], wanted: Container[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """Yield each partition's folder with its rows, in their order and without the partitions' columns.

    wanted: only these folders
    """
    for piece in row_groups(table):
        others = piece.drop_columns([*columns])
        for folder, rows in partition_rows(piece, columns).items():
            if wanted is None or folder in wanted:
                yield folder, take_rows(others, rows)


def take_rows(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """Return these rows, in this order, whatever the types."""
    try:
        return table.take(rows)
    except pa.ArrowNotImplementedError:  # types of views cannot be taken from, but cut out of
        return pa.concat_tables([table.slice(row, 1) for row in rows])
