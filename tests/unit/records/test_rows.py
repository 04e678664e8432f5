import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.errors import RecordError
from gptj_batch.records.rows import records_of

from .tables import bad_utf8, every_type


def test_every_row_becomes_a_dictionary_of_the_columns_asked_for():
    table = pa.table({"a": [1, None], "b": ["x", "y"], "c": [0, 0]})
    assert list(records_of(table, ["b", "a"])) == [{"b": "x", "a": 1}, {"b": "y", "a": None}]


def test_no_column_gives_an_empty_record_a_row():
    assert list(records_of(pa.table({"a": [1, 2]}), [])) == [{}, {}]


def test_every_type_has_python_values():
    rows = list(records_of(every_type(), every_type().column_names))
    assert [isinstance(row, RecordError) for row in rows] == [False] * 3


def test_a_row_of_invalid_utf8_is_an_error_with_the_byte_and_its_neighbours_are_not():
    table = pa.table({"id": [1, 2, 3, 4], "text": bad_utf8(b"fine", b"ab\xffcd", None, "é".encode())})
    good, bad, null, last = records_of(table, ["id", "text"])
    assert (good, null, last) == ({"id": 1, "text": "fine"}, {"id": 3, "text": None}, {"id": 4, "text": "é"})
    assert isinstance(bad, RecordError) and 'column "text" holds invalid UTF-8 at byte 2' in str(bad)


def test_the_message_never_holds_the_text():
    (bad,) = records_of(pa.table({"text": bad_utf8(b"SECRET\xff")}), ["text"])
    assert "SECRET" not in str(bad)


def test_bad_utf8_in_a_column_that_is_not_read_is_nobodys_error():
    table = pa.table({"id": [1], "text": bad_utf8(b"\xff")})
    assert list(records_of(table, ["id"])) == [{"id": 1}]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_other_string_types_are_checked_too(kind):
    (bad,) = records_of(pa.table({"text": bad_utf8(b"a\xed\xa0\x80").cast(kind)}), ["text"])
    assert isinstance(bad, RecordError) and "at byte 1" in str(bad)


def test_invalid_utf8_inside_lists_and_dictionaries_is_the_rows_error():
    texts = bad_utf8(b"a", b"b\xff")
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts)
    encoded = pa.DictionaryArray.from_arrays(pa.array([1, 0]), texts)
    rows = list(records_of(pa.table({"lists": lists}), ["lists"]))
    assert rows[0] == {"lists": ["a"]} and isinstance(rows[1], RecordError)
    rows = list(records_of(pa.table({"encoded": encoded}), ["encoded"]))
    assert isinstance(rows[0], RecordError) and rows[1] == {"encoded": "a"}


def test_a_date_that_python_cannot_hold_is_the_rows_error():
    table = pa.table({"day": pa.array([0, 10_000_000], pa.date32())})
    good, bad = records_of(table, ["day"])
    assert isinstance(good, dict) and isinstance(bad, RecordError) and "date32" in str(bad)


def test_an_unknown_time_zone_is_an_error_of_rows_not_of_the_table():
    table = pa.table({"at": pa.array([0, None], pa.timestamp("us", "Mars/Olympus"))})
    bad, null = records_of(table, ["at"])
    assert isinstance(bad, RecordError) and null == {"at": None}


@given(st.lists(st.binary(max_size=8) | st.none(), min_size=1))
def test_each_row_is_its_text_or_an_error_at_the_byte_python_names(values):
    for value, row in zip(values, records_of(pa.table({"t": bad_utf8(*values)}), ["t"]), strict=True):
        try:
            expected = None if value is None else value.decode()
        except UnicodeDecodeError as error:
            assert isinstance(row, RecordError) and f"at byte {error.start};" in str(row)
        else:
            assert row == {"t": expected}
