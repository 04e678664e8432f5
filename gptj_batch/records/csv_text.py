"""CSV: a line of names, then rows; fields are taken as they are written.

A column is int64, double or boolean where every field of it is written as one, else text: "007", "+1" and dates stay
what they are. An empty field is null; an empty one in quotes is an empty text.
"""

import csv
import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from gptj_batch.errors import shorten
from gptj_batch.records.formats import delimiter_of
from gptj_batch.records.marks import MarkMaker, Marks
from gptj_batch.records.text import BadTextError, Records, TextStream, csv_splitter, not_of_type

HEADER_ROW = -1
_WHOLE = "^(0|-?[1-9][0-9]*)$"
_NUMBER = r"^-?(0|[1-9][0-9]*|(0|[1-9][0-9]*)?\.[0-9]+)([eE][+-]?[0-9]+)?$"
_BOOLEAN = "^(true|True|TRUE|false|False|FALSE)$"
# Whole numbers of fewer digits are the same in a double. 2^53 has 16.
_WIDE = "^-?[0-9]{16,}$"


def scan_csv(path: str) -> tuple[int, pa.Schema, Marks, tuple[str, ...]]:
    """Read a whole file once, and return its rows, its columns, where its rows are, and its header.

    Raises BadTextError, OSError.
    """
    stream, marks = TextStream(path, csv_splitter(delimiter_of(path)), first_row=HEADER_ROW), MarkMaker()
    try:
        names = _header(next(iter(stream.take(1)), None), delimiter_of(path))
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise BadTextError(f'its header has more than one "{shorten(repeated[0], 40)}"')
        kinds = [_Kinds() for _ in names]
        while records := stream.next():
            marks.add(records)
            table = parse_fields(records, names, delimiter_of(path))
            for seen, column in zip(kinds, table.columns, strict=True):
                seen.see(column)
    finally:
        stream.close()
    schema = pa.schema([(name, seen.type()) for name, seen in zip(names, kinds, strict=True)])
    return stream.row, schema, marks.marks(), names


def _header(records: Records | None, delimiter: str) -> tuple[str, ...]:
    for line in records or ():
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadTextError(f"line 1: byte {error.start} is not UTF-8; convert the file to UTF-8") from None
        if "\r" in text.rstrip("\r"):
            raise BadTextError("line 1: its lines end with carriage returns alone; end them with line feeds")
        return tuple(next(csv.reader(io.StringIO(text.rstrip("\r"), newline=""), delimiter=delimiter)))
    raise BadTextError("it has no line of column names")


class _Kinds:
    """What was seen of one column."""

    def __init__(self) -> None:
        self._empty = True
        self._may_be = {"whole", "number", "boolean"}
        self._wide = False

    def see(self, column: pa.ChunkedArray) -> None:
        """Take more texts of the column, and give up the types that one of them is not."""
        column = column.drop_null()
        if not len(column) or not self._may_be:
            return
        self._empty = False
        for kind, pattern in (("whole", _WHOLE), ("number", _NUMBER), ("boolean", _BOOLEAN)):
            if kind in self._may_be and not pc.all(pc.match_substring_regex(column, pattern)).as_py():
                self._may_be.discard(kind)
        if "number" in self._may_be and not self._wide:
            self._wide = bool(pc.any(pc.match_substring_regex(column, _WIDE)).as_py())
        if "whole" in self._may_be and self._wide:
            try:
                column.cast(pa.int64())
            except pa.ArrowInvalid:
                self._may_be.clear()

    def type(self) -> pa.DataType:
        """Return the narrowest type that loses nothing."""
        if self._empty:
            return pa.null()
        if "whole" in self._may_be:
            return pa.int64()
        if "number" in self._may_be and not self._wide:
            return pa.float64()
        return pa.bool_() if "boolean" in self._may_be else pa.string()


def parse_fields(
    records: Records, names: Sequence[str], delimiter: str, wanted: Sequence[str] | None = None
) -> pa.Table:
    """Return the rows' fields as texts, of all columns or those wanted. Raises BadTextError naming the line."""
    ragged: list[tuple[int, int]] = []

    def note(row: arrow_csv.InvalidRow) -> str:
        ragged.append((row.number or 1, row.actual_columns))
        return "error"

    if not len(records):
        return pa.schema([(name, pa.string()) for name in wanted or names]).empty_table()
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(records.content),
            arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(records.content) + 1),
            arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=wanted,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        raise _bad(records, ragged, len(names)) from None
    if table.num_rows != len(records):
        raise BadTextError(
            f"lines {records.line} to {records.line_of(len(records) - 1)}: a line break without its line feed (a "
            "carriage return alone) stands outside of quotes; put the field in quotes, or end all lines alike"
        )
    return table


def _bad(records: Records, ragged: Sequence[tuple[int, int]], num_columns: int) -> BadTextError:
    """Return what is wrong; Arrow's own message would quote the row."""
    for index, record in enumerate(records):
        try:
            record.decode("utf-8")
        except UnicodeDecodeError as error:
            return BadTextError(
                f"line {records.line_of(index)}: byte {error.start} is not UTF-8; convert the file to UTF-8"
            )
    if ragged:
        number, found = ragged[0]
        line = records.line_of(min(number, len(records)) - 1)
        return BadTextError(
            f"line {line}: the row has {_fields(found)}, and the header {num_columns}; quote fields that hold "
            "the delimiter or a quote"
        )
    return BadTextError(f"lines from {records.line} on are not CSV")


def _fields(count: int) -> str:
    return f"{count} field" if count == 1 else f"{count} fields"


def csv_table(records: Records, names: Sequence[str], delimiter: str, schema: pa.Schema) -> pa.Table:
    """Return the rows' values in the columns of `schema`. Raises BadTextError where one does not fit."""
    texts = parse_fields(records, names, delimiter, schema.names)
    return pa.table([_column(texts.column(field.name), field) for field in schema], schema=schema)


def _column(texts: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if texts.null_count == len(texts):
        return pa.chunked_array([pa.nulls(len(texts), field.type)])
    if pa.types.is_floating(field.type) and pc.any(pc.match_substring_regex(texts, _WIDE)).as_py():
        raise BadTextError(f'"{shorten(field.name, 40)}" holds a whole number that a double cannot hold exactly')
    try:
        return texts.cast(field.type)
    except pa.ArrowInvalid:  # its message has the value
        raise not_of_type(field) from None
