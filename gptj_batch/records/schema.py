"""The columns of a table: which are read, which are added, and whether Parquet can hold them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.errors import ConfigError, shorten

_MAX_NAMES_SHOWN = 20


def name_list(names: Sequence[str]) -> str:
    """Return column names for a message: quoted, each cut, at most 20 of them."""
    shown = ", ".join(f'"{shorten(name, 40)}"' for name in names[:_MAX_NAMES_SHOWN])
    hidden = len(names) - _MAX_NAMES_SHOWN
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def select_columns(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """Return `schema` with only `columns`, in the order given; None keeps all.

    Raises ConfigError for a column that the input does not have, for one named twice, and for an empty list.
    """
    if columns is None:
        return schema
    if not columns:
        raise ConfigError("input.columns: the list is empty; name at least one column, or null for all")
    for name in columns:
        if name not in schema.names:
            raise ConfigError(f"input.columns: {_unknown_column(name, schema.names)}")
    if repeated := sorted({name for name in columns if list(columns).count(name) > 1}):
        raise ConfigError(f"input.columns: {name_list(repeated)} stands there more than once")
    return pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)


def _unknown_column(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    hint = f'; did you mean "{shorten(close[0], 40)}"?' if close else ";"
    return f'the input has no column "{shorten(name, 40)}"{hint} It has {name_list(known)}'


def output_schema(input_schema: pa.Schema, added: pa.Schema, prefix: str = "") -> pa.Schema:
    """Return the input's columns followed by the added ones, each of those with `prefix` before its name.

    The input's schema metadata (pandas' too) and all field metadata are kept. Raises ConfigError for a name clash.
    """
    fields = [field.with_name(prefix + field.name) for field in added]
    clashes = [field.name for field in fields if field.name in input_schema.names]
    if clashes:
        raise ConfigError(
            f"output.prefix: the task adds {name_list(clashes)}, and the input already has a column of that name; "
            f'set output.prefix (it is "{shorten(prefix, 40)}" now), or leave the column out with input.columns'
        )
    return pa.schema([*input_schema, *fields], metadata=input_schema.metadata)


def append(table: pa.Table, columns: pa.Table | Mapping[str, pa.Array | pa.ChunkedArray], prefix: str = "") -> pa.Table:
    """Return `table` with `columns` after its own, as `output_schema` orders and names them.

    Raises ConfigError for a name clash; a column of another length is a bug of the caller.
    """
    added = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    assert added.num_rows == table.num_rows or not added.num_columns, "rows out = rows in"
    schema = output_schema(table.schema, added.schema, prefix)
    return pa.Table.from_arrays([*table.columns, *added.columns], schema=schema)


def check_storable(schema: pa.Schema) -> None:
    """Raise ConfigError naming every column whose type has no form in Parquet (unions, intervals and the like)."""
    bad = [field for field in schema if not _is_storable(field)]
    if bad:
        types = ", ".join(f'"{shorten(field.name, 40)}" ({shorten(field.type)})' for field in bad)
        raise ConfigError(
            f"output.format: Parquet cannot hold these columns: {types}; leave them out with input.columns"
        )


def _is_storable(field: pa.Field) -> bool:
    try:
        pq.write_table(pa.schema([field]).empty_table(), pa.BufferOutputStream())
    except pa.ArrowException:
        return False
    return True


def one_dictionary(table: pa.Table) -> pa.Table | None:
    """Return the table with one dictionary for all chunks of a column; None where its index type is too small for that.

    Files may each use up to 127 of their own values behind an int8: such a table is good, but has no single dictionary.
    """
    if not any(pa.types.is_dictionary(field.type) for field in nested_fields(table.schema)):
        return table
    try:
        return table.unify_dictionaries()
    except pa.ArrowInvalid:
        return None


def nested_fields(fields: Iterable[pa.Field]) -> Iterator[pa.Field]:
    """Yield every field and everything nested in it."""
    waiting = list(fields)
    while waiting:
        field = waiting.pop()
        kind = field.type
        yield field
        if isinstance(kind, pa.BaseExtensionType):
            waiting.append(pa.field("storage", kind.storage_type))
        waiting.extend(kind.field(i) for i in range(kind.num_fields))
