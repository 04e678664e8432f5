"""Rows as JSON lines: the text of every Arrow type.

integers            integers, whatever their size        floats      shortest form; NaN and infinities are null
booleans            true, false                          decimals    strings, all digits kept
text                strings; bytes that are no UTF-8 become U+FFFD
binary              base64                               UUIDs       their usual form
date, time          "2024-02-29", "13:00:00.001"         duration    ISO 8601: "PT1.500S", "-PT0.003S"
timestamp           "2024-02-29T13:00:00.001"; with a zone the same instant in UTC: "...Z"
list, struct        arrays, objects                      dictionary  its values
map                 an object where keys are text, else an array of {"key": ..., "value": ...}
"""

import base64
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from json import JSONEncoder
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_ROWS_AT_ONCE = 1024
_FRACTION_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_quoted = JSONEncoder(ensure_ascii=False).encode


def json_lines(table: pa.Table) -> Iterator[str]:
    """Yield the rows as text, some lines at a time: one object a line, the columns in order."""
    names = [f"{_quoted(name)}:" for name in table.column_names]
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        piece = table.slice(start, _ROWS_AT_ONCE)
        columns = [list(chain.from_iterable(map(_texts, column.chunks))) for column in piece.columns]
        yield "".join(f"{_object(names, row)}\n" for row in zip(*columns, strict=True))


def _object(names: Iterable[str], values: Iterable[str]) -> str:
    return "{" + ",".join(name + value for name, value in zip(names, values, strict=True)) + "}"


def _texts(array: pa.Array) -> list[str]:
    """Return the JSON of every value."""
    for is_kind, make in _RULES:
        if is_kind(array.type):
            return make(array)
    raise pa.ArrowNotImplementedError(f"JSON has no form for {array.type}")


def _nulls(array: pa.Array) -> list[str]:
    return ["null"] * len(array)


def _bare(array: pa.Array) -> list[str]:
    return ["null" if text is None else text for text in array.cast(pa.string()).to_pylist()]


def _in_quotes(array: pa.Array) -> list[str]:
    return ["null" if text is None else f'"{text}"' for text in array.cast(pa.string()).to_pylist()]


def _floats(array: pa.Array) -> list[str]:
    if not types.is_float64(array.type):  # by way of their own shortest text, 0.1 stays 0.1
        array = array.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    return ["null" if v is None or not math.isfinite(v) else float.__repr__(v) for v in array.to_pylist()]


def _timestamps(array: pa.Array) -> list[str]:
    if array.type.tz is not None:
        array = array.cast(pa.timestamp(array.type.unit, "UTC"))
    return _in_quotes(pc.replace_substring(array.cast(pa.string()), " ", "T", max_replacements=1))


def _durations(array: pa.Array) -> list[str]:
    digits = _FRACTION_DIGITS[array.type.unit]
    return ["null" if v is None else _duration(v, digits) for v in array.cast(pa.int64()).to_pylist()]


def _duration(value: int, digits: int) -> str:
    whole, fraction = divmod(abs(value), 10**digits)
    point = f".{fraction:0{digits}d}" if digits else ""
    return f'"{"-" if value < 0 else ""}PT{whole}{point}S"'


def _strings(array: pa.Array) -> list[str]:
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:  # Arrow does not check what it is given
        values = [
            None if v is None else v.decode("utf-8", "replace") for v in array.cast(pa.large_binary()).to_pylist()
        ]
    return ["null" if value is None else _quoted(value) for value in values]


def _binaries(array: pa.Array) -> list[str]:
    return ["null" if v is None else f'"{base64.b64encode(v).decode("ascii")}"' for v in array.to_pylist()]


def _lists(array: pa.Array) -> list[str]:
    return [
        "null" if items is None else f"[{','.join(items)}]"
        for items in _runs(_texts(pc.list_flatten(array)), pc.list_value_length(array))
    ]


def _runs(items: Iterable[str], lengths: pa.Array) -> Iterator[list[str] | None]:
    left = iter(items)
    for length in lengths.to_pylist():
        yield None if length is None else list(islice(left, length))


def _structs(array: pa.Array) -> list[str]:
    names = [f"{_quoted(array.type.field(i).name)}:" for i in range(array.type.num_fields)]
    columns = [_texts(field) for field in array.flatten()]
    rows = zip(*columns, strict=True) if columns else ((),) * len(array)
    valid = array.is_valid().to_pylist()
    return [_object(names, row) if is_valid else "null" for row, is_valid in zip(rows, valid, strict=True)]


def _maps(array: pa.Array) -> list[str]:
    kind = array.type
    pairs = array.cast(pa.list_(pa.field("entries", pa.struct([kind.key_field, kind.item_field]), nullable=False)))
    if not _is_text(kind.key_type):
        return _lists(pairs)
    keys, values = (_texts(column) for column in pc.list_flatten(pairs).flatten())
    entries = (f"{key}:{value}" for key, value in zip(keys, values, strict=True))
    return [
        "null" if items is None else "{" + ",".join(items) + "}"
        for items in _runs(entries, pc.list_value_length(pairs))
    ]


def _extensions(array: pa.Array) -> list[str]:
    if array.type.extension_name != "arrow.uuid":
        return _texts(array.storage)
    return ["null" if value is None else f'"{UUID(bytes=value)}"' for value in array.storage.to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _is_plain(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_boolean(kind))


def _is_date_or_decimal(kind: pa.DataType) -> bool:
    return bool(types.is_date(kind) or types.is_time(kind) or types.is_decimal(kind))


_RULES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[str]]], ...] = (
    (lambda kind: isinstance(kind, pa.BaseExtensionType), _extensions),
    (types.is_dictionary, lambda array: _texts(array.dictionary_decode())),
    (types.is_null, _nulls),
    (_is_plain, _bare),
    (types.is_floating, _floats),
    (_is_text, _strings),
    (_is_date_or_decimal, _in_quotes),
    (types.is_timestamp, _timestamps),
    (types.is_duration, _durations),
    (_is_binary, _binaries),
    (_is_list, _lists),
    (types.is_map, _maps),
    (types.is_struct, _structs),
)
