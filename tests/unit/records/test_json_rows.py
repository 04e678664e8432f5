import json
import math
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.records.json_rows import json_lines

from .tables import bad_utf8, every_type

NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def rows(table):
    lines = "".join(json_lines(table)).split("\n")
    assert lines.pop() == ""
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def values(array):
    return [row["c"] for row in rows(pa.table({"c": array}))]


def test_every_type_has_a_form_and_keeps_its_nulls():
    first, second, third = rows(every_type())
    assert list(first) == every_type().column_names
    assert [first[name] for name in NUMBERS] == [1] * 8 and third["uint64"] == 3
    assert set(map(str, second.values())) == {"None"}
    shown = {
        "float_halffloat": 1.5, "dec_decimal256(50, 3)": "1.250", "bool": True, "date": "2024-02-29", "null": None,
        "ts_ms": "1970-01-01T00:00:00.001", "tz_ns": "1970-01-01T00:00:00.000000001Z", "dur_s": "PT1S",
        "dur_us": "PT0.000001S", "time_ns": "00:00:00.000000001", "text_string_view": "héllo 😀",
        "bytes_binary_view": "AP8=", "fixed_bytes": "YWI=", "dict_int8": "a", "dict_ordered": "y", "list": [1, None],
        "large_list": ["a", None], "fixed_list": [1.0, 2.0], "struct": {"a": 1, "b": None}, "map": {"k": 1.5},
        "deep": [{"k": {"a": [1]}}], "uuid": "30313233-3435-3637-3839-616263646566",
    }  # fmt: skip
    assert {name: first[name] for name in shown} == shown
    assert (third["list"], third["map"], third["deep"]) == ([], {}, [None, {"k": None}])
    assert third["dur_ms"] == "-PT0.003S" and third["float_double"] is None


@pytest.mark.parametrize("name", every_type().column_names)
def test_a_slice_has_the_values_of_its_rows(name):
    column = every_type().column(name)
    assert values(column.slice(1)) == values(column)[1:] and values(column.slice(2, 0)) == []


def test_numbers_that_json_does_not_have_are_null():
    assert values(pa.array([math.nan, math.inf, -math.inf, 1.0])) == [None, None, None, 1.0]
    assert values(pa.array([[math.nan, 2.0]], pa.list_(pa.float32()))) == [[None, 2.0]]


def test_whole_numbers_stay_whole_and_floats_stay_floats():
    lines = "".join(json_lines(pa.table({"i": [2**63 - 1, -(2**63)], "f": [1.0, 1e22]})))
    assert lines == '{"i":9223372036854775807,"f":1.0}\n{"i":-9223372036854775808,"f":1e+22}\n'


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_single_precision_comes_back_exactly_from_its_short_form(numbers):
    array = np.array(numbers, np.float32)
    assert np.array(values(pa.array(array)), np.float32).tolist() == array.tolist()
    assert values(pa.array([0.1], pa.float32())) == [0.1]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_durations_are_exact(numbers):
    for number, text in zip(numbers, values(pa.array(numbers, pa.duration("us"))), strict=True):
        seconds = text.removeprefix("-").removeprefix("PT").removesuffix("S").replace(".", "")
        assert int(seconds) * (-1 if text[0] == "-" else 1) == number
    assert values(pa.array([timedelta(hours=1)], pa.duration("ms"))) == ["PT3600.000S"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_stands_on_one_line(texts):
    text = "".join(json_lines(pa.table({"c": pa.array(texts, pa.string())})))
    assert text.count("\n") == len(texts) and [json.loads(line)["c"] for line in text.split("\n")[:-1]] == texts


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_bytes_that_are_no_text_are_replaced_and_their_neighbours_stay(kind):
    column = bad_utf8(b"ok", b"a\xffb", None).cast(pa.binary()).cast(pa.large_binary())
    column = pa.Array.from_buffers(pa.large_string(), 3, column.buffers())
    assert values(column if kind == pa.large_string() else bad_utf8(b"ok", b"a\xffb", None)) == ["ok", "a\ufffdb", None]


def test_maps_whose_keys_are_no_text_are_lists_of_pairs():
    column = pa.array([[(1, "x"), (2, None)], None, []], pa.map_(pa.int32(), pa.string()))
    assert values(column) == [[{"key": 1, "value": "x"}, {"key": 2, "value": None}], None, []]
    assert values(column.slice(1)) == [None, []]


def test_a_key_that_a_map_has_twice_is_written_twice():
    table = pa.table({"c": pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int8()))})
    assert "".join(json_lines(table)) == '{"c":{"a":1,"a":2}}\n'


def test_structs_without_fields_and_fields_with_odd_names():
    assert values(pa.array([{}, None], pa.struct([]))) == [{}, None]
    assert rows(pa.table({'a"\n': [1]})) == [{'a"\n': 1}]


def test_many_rows_of_several_chunks_keep_their_order():
    table = pa.concat_tables([pa.table({"c": range(start, start + 700)}) for start in range(0, 7000, 700)])
    assert [row["c"] for row in rows(table)] == list(range(7000))


def test_a_zone_that_this_machine_does_not_know_is_no_matter():
    assert values(pa.array([0], pa.timestamp("s", "Nowhere/At_all"))) == ["1970-01-01T00:00:00Z"]
