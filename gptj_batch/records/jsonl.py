"""JSON lines: one object a line."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from gptj_batch.errors import shorten
from gptj_batch.records.json_types import Kinds, see_fields
from gptj_batch.records.marks import MarkMaker, Marks
from gptj_batch.records.text import BadTextError, Records, TextStream, not_of_type, split_lines

_NAMES = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def scan_jsonl(path: str) -> tuple[int, pa.Schema, Marks]:
    """Read a whole file once, and return its rows, its columns and where its rows are. Raises BadTextError, OSError."""
    stream, marks, fields = TextStream(path, split_lines), MarkMaker(), dict[str, Kinds]()
    try:
        while records := stream.next():
            marks.add(records)
            see_fields(fields, parse_lines(records), records.line_of)
        if not stream.offset:
            raise BadTextError("the file is empty")
    finally:
        stream.close()
    schema = pa.schema([(name, kinds.type()) for name, kinds in fields.items()])
    return stream.row, schema, marks.marks()


def parse_lines(records: Records) -> list[dict[str, Any]]:
    """Return the objects. Raises BadTextError naming the line, never with its text."""
    return [_parse(line, records, index) for index, line in enumerate(records)]


def _parse(line: bytes, records: Records, index: int) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(records, index, f"byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    except UnicodeEncodeError:
        raise _bad(records, index, r"it holds half of a surrogate pair (such as \ud83d), which is no text") from None
    except json.JSONDecodeError as error:
        hint = _hint(records, index, line)
        raise _bad(records, index, f"it is not JSON: {error.msg} at character {error.colno}{hint}") from None
    except RecursionError:
        raise _bad(records, index, "its values are nested too deeply") from None
    except ValueError as error:  # a key that comes twice; a number of thousands of digits
        raise _bad(records, index, shorten(error, 120)) from None
    if not isinstance(value, dict):
        raise _bad(records, index, f"it is {_NAMES[type(value)]}, and must be an object{_hint(records, index, line)}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'it has more than one "{shorten(twice, 40)}"')
    return made


# Not strict: a tab or another control character in a text is taken as it is.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, strict=False)


def _bad(records: Records, index: int, rule: str) -> BadTextError:
    return BadTextError(f"line {records.line_of(index)}: {rule}")


def _hint(records: Records, index: int, line: bytes) -> str:
    if records.row + index:
        return ""
    if line.lstrip().startswith(b"["):
        return "; a list of all rows is no JSON lines: write one object a line (`jq -c '.[]'` does)"
    return "; write one whole object a line (`jq -c .` does)" if line.strip() == b"{" else ""


def jsonl_table(records: Records, schema: pa.Schema) -> pa.Table:
    """Return the rows' values in the columns of `schema`. Raises BadTextError where one does not fit."""
    rows = parse_lines(records)
    return pa.table([_column(rows, field) for field in schema], schema=schema)


def _column(rows: Sequence[dict[str, Any]], field: pa.Field) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.array([row.get(field.name) for row in rows], field.type)
    except (pa.ArrowException, OverflowError, TypeError):  # its message may have the value
        raise not_of_type(field) from None
