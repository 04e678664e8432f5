"""The rows of a table as Python values, where a value that Python cannot hold is that row's error alone."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from gptj_batch.errors import RecordError, shorten

# What pyarrow raises for a value without a Python counterpart: bad UTF-8, year 12000, a time zone nobody knows.
_NO_VALUE = (ValueError, OverflowError, KeyError, pa.ArrowException)


def records_of(table: pa.Table, columns: Iterable[str]) -> Iterator[dict[str, Any] | RecordError]:
    """Yield every row as a dictionary of `columns`, or the RecordError that says which of them is bad.

    The message holds the column and the place in the value, never the value.
    """
    names = list(columns)
    if not names:
        yield from ({} for _ in range(table.num_rows))
        return
    for values in zip(*(_values(table.column(name), name) for name in names), strict=True):
        bad = next((value for value in values if isinstance(value, RecordError)), None)
        yield dict(zip(names, values, strict=True)) if bad is None else bad


def _values(column: pa.ChunkedArray, name: str) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except _NO_VALUE:
        return [_value(scalar, name) for scalar in column]
    return values


def _value(scalar: pa.Scalar, name: str) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return RecordError(
            f'column "{shorten(name, 40)}" holds invalid UTF-8 at byte {error.start}; repair the text, '
            "or leave the row out"
        )
    except _NO_VALUE:
        return RecordError(
            f'column "{shorten(name, 40)}" holds a {shorten(scalar.type)} that has no Python value; repair it, or '
            "leave the row out"
        )
