import json

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gptj_batch.records import text
from gptj_batch.records.jsonl import jsonl_table, scan_jsonl
from gptj_batch.records.text import BadTextError, TextStream, split_lines

from .text_files import json_lines, write_text


def scanned(tmp_path, *rows: object, name: str = "a.jsonl"):
    content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return scan_jsonl(str(write_text(tmp_path / name, content)))


def types(tmp_path, *rows: object) -> dict[str, str]:
    return {field.name: str(field.type) for field in scanned(tmp_path, *rows)[1]}


def read_back(path, schema: pa.Schema) -> list[dict]:
    stream = TextStream(str(path), split_lines)
    return [row for piece in iter(stream.next, None) for row in jsonl_table(piece, schema).to_pylist()]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None], "null"),
        ([True, None], "bool"),
        ([1, -5, None], "int64"),
        ([1, 2.5], "double"),
        ([2**63, 1], "uint64"),
        ([-(2**63), 2**63 - 1], "int64"),
        ([1.5, float("nan"), float("-inf")], "double"),
        (["2024-01-01", "007", "true"], "string"),
        ([[], None], "list<item: null>"),
        ([[1], [2.5], [None]], "list<item: double>"),
        ([[["a"]], [[]]], "list<item: list<item: string>>"),
        ([{"a": 1}, {"b": "x"}, None], "struct<a: int64, b: string>"),
        ([[{"a": 1}], [{"a": None, "b": [True]}]], "list<item: struct<a: int64, b: list<item: bool>>>"),
    ],
)
def test_a_column_has_the_type_that_all_its_values_fit(tmp_path, values, kind):
    assert types(tmp_path, *({"c": value} for value in values)) == {"c": kind}


def test_a_type_is_that_of_all_lines_not_of_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK_BYTES", 64)
    rows = [{"n": None, "m": 1}] * 100 + [{"n": "late", "m": 0.5, "new": [1]}]
    assert types(tmp_path, *rows) == {"n": "string", "m": "double", "new": "list<item: int64>"}


def test_columns_come_in_the_order_in_which_they_first_come(tmp_path):
    assert list(types(tmp_path, {"b": 1}, {"a": 1, "b": 2}, {"c": 1, "a": 2})) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([{"id": 1}, {}, {"id": "x"}], 'line 3: "id" is a text, and on line 1 it is a whole number'),
        ([{"id": True}, {"id": 1}], 'line 2: "id" is a whole number, and on line 1 it is true or false'),
        ([{"a": [1, [2]]}], r'line 1: "a\[\]" is a list, and on line 1 it is a whole number'),
        ([{"a": {"b": 1.5}}, {"a": {"b": "secret"}}], r'line 2: "a\.b" is a text, and on line 1 it is a fraction'),
        ([{"a": 1}, {"a": 2**64}], 'line 2: "a" holds a whole number beyond 64 bits'),
        ([{"a": -1}, {"a": 2**63}], 'line 2: "a" holds a whole number beyond 64 bits'),
        ([{"a": 0.5}, {"a": 2**53 + 1}], r'line 2: "a" holds a whole number beyond 2\^53'),
        ([{"a": -(2**53) - 1}, {"a": 0.5}], r'line 1: "a" holds a whole number beyond 2\^53'),
        (['{"a": 1}', "", '{"a": 1, "secret'], "line 3: it is not JSON: Unterminated string .* at character 10$"),
        (['{"a": 1}{"a": 2}'], "line 1: it is not JSON: Extra data"),
        (['{"a": 1, "a": 2}'], 'line 1: it has more than one "a"'),
        (['{"s": {"a": 1, "a": 2}}'], 'line 1: it has more than one "a"'),
        (['{"a": 1}', "[1]"], "line 2: it is a list, and must be an object$"),
        (['[{"a": 1}, {"a": 2}]'], "line 1: it is a list, and must be an object; .*one object a line"),
        (["[", '{"a": 1}', "]"], "line 1: it is not JSON: .*one object a line"),
        (["{", '"a": 1', "}"], "line 1: it is not JSON: .*one whole object a line"),
        (["7"], "line 1: it is a number, and must be an object"),
        ([r'{"a": "half \ud83d"}'], "line 1: it holds half of a surrogate pair"),
        (["[" * 100_000], "line 1: its values are nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line_and_without_its_text(tmp_path, rows, rule):
    with pytest.raises(BadTextError, match=rule) as caught:
        scanned(tmp_path, *rows)
    assert "secret" not in str(caught.value)


def test_invalid_utf8_is_named_with_its_line_and_byte(tmp_path):
    path = write_text(tmp_path / "a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n')
    with pytest.raises(BadTextError, match="line 2: byte 7 is not UTF-8; convert"):
        scan_jsonl(str(path))


def test_a_file_of_nothing_is_empty(tmp_path):
    with pytest.raises(BadTextError, match="the file is empty"):
        scan_jsonl(str(write_text(tmp_path / "a.jsonl.gz", "")))


def test_whole_surrogate_pairs_and_control_characters_are_text(tmp_path):
    path = write_text(tmp_path / "a.jsonl", '{"a": "\\ud83d\\ude00\t"}\n')
    assert read_back(path, scan_jsonl(str(path))[1]) == [{"a": "😀\t"}]


VALUES = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "text": VALUES,
            "n": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
            "x": st.one_of(st.none(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False)),
            "list": st.one_of(st.none(), st.lists(VALUES, max_size=3)),
            "deep": st.one_of(st.none(), st.lists(st.fixed_dictionaries({"k": VALUES}), max_size=2)),
        },
    ),
    min_size=1,
    max_size=20,
)


@given(ROWS)
def test_every_value_comes_back_as_it_was(tmp_path_factory, rows):
    path = write_text(tmp_path_factory.mktemp("rows") / "a.jsonl", json_lines(rows))
    num_rows, schema, _ = scan_jsonl(str(path))
    assume(schema.names)
    assert num_rows == len(rows)
    assert read_back(path, schema) == [{name: row.get(name) for name in schema.names} for row in rows]
