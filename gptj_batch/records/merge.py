"""Schemas that differ and fit: one schema for all files of a run, into which every value goes without being changed.

A column that a file does not have is null there. Whole numbers take the wider type, with fractions double; a column
without a type takes that of the others; texts and lists take the larger kind, decimals and times the finer one; fields
of structs merge as columns do. What does not fit so is refused. Only CSV falls back to text, which its fields are.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import types

from gptj_batch.errors import InputError, shorten

_SIGNED = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_UNITS = ("s", "ms", "us", "ns")


def merge_schemas(files: Sequence[Any]) -> pa.Schema:
    """Return the schema that all files (`footers.InputFile`) are read as: the first one's columns, then new ones.

    Metadata are the first file's. Raises InputError naming both files, the column and both types.
    """
    merged = {field.name: field for field in files[0].schema}
    origin = dict.fromkeys(merged, files[0])
    for file in files[1:]:
        if file.schema.equals(files[0].schema, check_metadata=True) and file.schema.names == list(merged):
            continue
        for field in file.schema:
            if field.name not in merged:
                merged[field.name], origin[field.name] = field, file
            elif not merged[field.name].equals(field):
                one, other = merged[field.name], origin[field.name]
                kind = merge_types(one.type, field.type) or _as_text(other, file)
                if kind is None:
                    raise _disagreement(field.name, other, file)
                if not kind.equals(one.type):
                    origin[field.name] = file
                merged[field.name] = one.with_type(kind).with_nullable(one.nullable or field.nullable)
    return pa.schema(_nullable_where_missing(merged, files), metadata=files[0].schema.metadata)


def _nullable_where_missing(merged: dict[str, pa.Field], files: Sequence[Any]) -> list[pa.Field]:
    strict = [name for name, field in merged.items() if not field.nullable]
    missing = {name for name in strict if any(name not in file.schema.names for file in files)}
    return [field.with_nullable(True) if name in missing else field for name, field in merged.items()]


def _as_text(one: Any, other: Any) -> pa.DataType | None:
    return pa.string() if one.format == other.format == "csv" else None


def merge_types(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of both, or None."""
    if one.equals(other) or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if types.is_dictionary(one) or types.is_dictionary(other):
        return _dictionary(one, other)
    for merge in (_number, _decimal, _time, _text, _struct, _list):
        if (kind := merge(one, other)) is not None:
            return kind
    return None


def _number(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if types.is_floating(one) and types.is_floating(other):
        return max(one, other, key=lambda kind: kind.bit_width)
    if types.is_integer(one) and types.is_integer(other):
        return _whole_number(one, other)
    both = (types.is_integer(one), types.is_integer(other), types.is_floating(one), types.is_floating(other))
    return pa.float64() if both in ((True, False, False, True), (False, True, True, False)) else None


def _whole_number(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    for family in (_SIGNED, _UNSIGNED):
        if one in family and other in family:
            return max(one, other, key=lambda kind: kind.bit_width)
    signed, unsigned = (one, other) if one in _SIGNED else (other, one)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return next((kind for kind in _SIGNED if kind.bit_width == bits), None)


def _decimal(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (types.is_decimal(one) and types.is_decimal(other)):
        return None
    scale = max(one.scale, other.scale)
    digits = max(one.precision - one.scale, other.precision - other.scale) + scale
    bits = max(one.bit_width, other.bit_width)
    makers = ((32, 9, pa.decimal32), (64, 18, pa.decimal64), (128, 38, pa.decimal128), (256, 76, pa.decimal256))
    return next((make(digits, scale) for size, most, make in makers if size >= bits and digits <= most), None)


def _time(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    for same in (types.is_timestamp, types.is_duration, types.is_time):
        if same(one) and same(other) and getattr(one, "tz", None) == getattr(other, "tz", None):
            return max(one, other, key=lambda kind: _UNITS.index(kind.unit))
    return None


def _text(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    binaries = (types.is_binary, types.is_large_binary, types.is_binary_view)
    for family, large in ((texts, pa.large_string()), (binaries, pa.large_binary())):
        if all(any(is_kind(kind) for is_kind in family) for kind in (one, other)):
            return large
    return None


def _struct(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (types.is_struct(one) and types.is_struct(other)):
        return None
    merged = {field.name: field for field in one}
    for field in other:
        mine = merged.get(field.name, field)
        kind = merge_types(mine.type, field.type)
        if kind is None:
            return None
        merged[field.name] = mine.with_type(kind).with_nullable(mine.nullable or field.nullable)
    names = ({field.name for field in kind} for kind in (one, other))
    lacking = set.symmetric_difference(*names)
    fields = [field.with_nullable(True) if name in lacking else field for name, field in merged.items()]
    return pa.struct(fields) if len(merged) else None


def _list(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if types.is_map(one) and types.is_map(other):
        key, item = merge_types(one.key_type, other.key_type), merge_types(one.item_type, other.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    plain = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if not all(any(is_kind(kind) for is_kind in plain) for kind in (one, other)):
        return None
    items = merge_types(one.value_type, other.value_type)
    if items is None:
        return None
    field = one.value_field.with_type(items).with_nullable(one.value_field.nullable or other.value_field.nullable)
    if types.is_fixed_size_list(one) and types.is_fixed_size_list(other) and one.list_size == other.list_size:
        return pa.list_(field, one.list_size)
    return pa.large_list(field) if types.is_large_list(one) or types.is_large_list(other) else pa.list_(field)


def _dictionary(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the dictionary with the wider index; of a dictionary and plain values the values' type."""
    pair = [kind.value_type if types.is_dictionary(kind) else kind for kind in (one, other)]
    values = merge_types(*pair)
    if values is None or not (types.is_dictionary(one) and types.is_dictionary(other)):
        return values
    index = _whole_number(one.index_type, other.index_type)
    return None if index is None else pa.dictionary(index, values, ordered=one.ordered and other.ordered)


def conform(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a file's column as the type that it was merged to. Raises ValueError where a value would change."""
    if column.type.equals(kind):
        return column
    if types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:  # its message has the value
        raise ValueError(
            f"it has a {shorten(column.type)} that is no {shorten(kind)}, which is what other files make of the column"
        ) from None


def _disagreement(name: str, first: Any, other: Any) -> InputError:
    return InputError(
        f'input.path: the files do not agree on column "{shorten(name, 40)}": it is {_kind(first, name)} in '
        f"{first.path} and {_kind(other, name)} in {other.path}. Write both with the same type, or keep only the "
        "files that agree in input.path"
    )


def _kind(file: Any, name: str) -> str:
    return shorten(file.schema.field(name).type, 120)
