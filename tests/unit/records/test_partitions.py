import datetime as dt
from pathlib import PurePath

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.errors import ConfigError, OutputError
from gptj_batch.records.partitions import check_partitions, partition_rows, split, value_in_path, without_columns

from .tables import bad_utf8, every_type

TYPES = {
    **{kind: f"{kind}=1" for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    "dec_decimal128(20, 3)": "dec_decimal128%2820%2C%203%29=1.250",
    "ts_ms": "ts_ms=1970-01-01%2000%3A00%3A00.001",
    "date": "date=2024-02-29",
    "bool": "bool=true",
    "text_string": "text_string=h%C3%A9llo%20%F0%9F%98%80",
    "text_large_string": "text_large_string=h%C3%A9llo%20%F0%9F%98%80",
    "text_string_view": "text_string_view=h%C3%A9llo%20%F0%9F%98%80",
    "dict_int8": "dict_int8=a",
    "dict_ordered": "dict_ordered=y",
}


def folders(array, name="c"):
    return list(partition_rows(pa.table({name: array}), [name]))


@pytest.mark.parametrize(("name", "folder"), TYPES.items())
def test_types_that_can_name_folders(name, folder):
    check_partitions(every_type().schema, [name])
    assert next(iter(partition_rows(every_type(), [name]))) == folder
    assert list(partition_rows(every_type(), [name]))[1].endswith("=__HIVE_DEFAULT_PARTITION__")


@pytest.mark.parametrize(
    "name",
    ["float_float", "float_double", "bytes_binary", "time_ms", "dur_s", "null", "list", "struct", "map", "uuid"],
)
def test_types_that_cannot(name):
    with pytest.raises(ConfigError, match=rf'output\.partition_by: "{name}" is .*; partitions are by text'):
        check_partitions(every_type().schema, ["int8", name])


def test_the_files_keep_a_column():
    with pytest.raises(ConfigError, match="it names every column"):
        check_partitions(pa.schema([("a", pa.string()), ("b", pa.int8())]), ["b", "a"])


@given(st.lists(st.text() | st.none(), min_size=1))
def test_no_value_leaves_its_folder_or_meets_another(values):
    column = pa.array([None if v is None else v.encode("utf-8", "surrogatepass") for v in values], pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(values), column.buffers())
    try:
        names = folders(column)
    except OutputError:
        assert max(len(value or "") for value in values) > 20
        return
    assert len(names) == len({value or None for value in values})
    for name in names:
        assert PurePath(name).parts == (name,) and name.startswith("c=") and name.isascii() and "\0" not in name
    for name, rows in partition_rows(pa.table({"c": column}), ["c"]).items():
        is_there, value = value_in_path(PurePath(name) / "part-00000.parquet", "c")
        assert is_there and (value or "") == (values[rows[0]] or "").encode("utf-8", "surrogatepass").decode(
            "utf-8", "replace"
        )


@pytest.mark.parametrize("value", ["..", "../..", "/etc", "a/b", "a=b", ".", "con\\x", "%2e%2e", "\n"])
def test_what_would_lead_elsewhere_is_encoded(value):
    (name,) = folders(pa.array([value]))
    assert "/" not in name and "\\" not in name and value_in_path(PurePath(name, "x"), "c") == (True, value)


def test_names_of_columns_are_encoded_too():
    (name,) = folders(pa.array(["v"]), "../a=b")
    assert name == "..%2Fa%3Db=v" and value_in_path(PurePath(name, "x"), "../a=b") == (True, "v")


def test_an_empty_text_goes_where_null_goes_as_with_spark():
    assert folders(pa.array(["", None])) == ["c=__HIVE_DEFAULT_PARTITION__"]
    assert value_in_path(PurePath("c=__HIVE_DEFAULT_PARTITION__", "x"), "c") == (True, None)


def test_bytes_that_are_no_text_have_their_own_folder():
    assert folders(bad_utf8(b"\xff", b"\xfe")) == ["c=%FF", "c=%FE"]


def test_a_value_too_long_for_a_folder_is_named_by_its_length():
    with pytest.raises(OutputError, match=r'"c" has a value of 300 bytes, too long .*finished units are kept'):
        folders(pa.array(["x" * 300]))


def test_several_columns_make_folders_in_folders():
    table = pa.table({"day": [dt.date(2024, 1, 1), dt.date(2024, 1, 2)] * 2, "n": [1, 1, 2, 1], "x": [1, 2, 3, 4]})
    assert partition_rows(table, ["n", "day"]) == {
        "n=1/day=2024-01-01": [0],
        "n=1/day=2024-01-02": [1, 3],
        "n=2/day=2024-01-01": [2],
    }


@pytest.mark.parametrize("by", [["c"], ["name"], ["c", "name"]])
def test_what_pandas_noted_of_a_column_leaves_with_it(by):
    index = pd.Index(["a", "b"], name="name")
    table = pa.Table.from_pandas(pd.DataFrame({"c": pd.array([1, None], "Int64"), "x": [1, 2]}, index=index))
    kept = without_columns(table.schema, by)
    assert set(kept.names) == {"c", "x", "name"} - set(by)
    frame = table.drop_columns(by).cast(kept).to_pandas()
    assert list(frame.columns) == [name for name in ("c", "x") if name not in by]
    assert frame.index.name == (None if "name" in by else "name")


@pytest.mark.parametrize("notes", [b"", b"[]", b"{}", b'{"columns": [1]}'])
def test_notes_that_are_not_of_pandas_stay_as_they_are(notes):
    schema = pa.schema([("c", pa.int8()), ("x", pa.int8())], {"pandas": notes})
    assert without_columns(schema, ["c"]) == pa.schema([("x", pa.int8())])
    assert without_columns(schema, ["c"]).metadata == {b"pandas": notes}


def test_every_type_is_split_with_its_rows_in_order_and_metadata():
    table = pa.concat_tables([every_type(), every_type()]).append_column("c", pa.array(list("abbaab")))
    back = dict(split(table, ["c"]))
    for value, rows in (("a", [0, 3, 4]), ("b", [1, 2, 5])):
        piece = back[f"c={value}"]
        expected = pa.concat_tables([table.slice(row, 1) for row in rows]).drop_columns(["c"])
        assert piece.equals(expected) and piece.schema.metadata == every_type().schema.metadata


def test_dictionaries_too_many_for_one_index_are_split_piece_by_piece():
    kind = pa.dictionary(pa.int8(), pa.string())
    texts = [f"{side}{i}" for side in "lr" for i in range(100)]
    column = pa.chunked_array([pa.array(texts[:100]).cast(kind), pa.array(texts[100:]).cast(kind)])
    pieces = [piece for _, piece in split(pa.table({"c": column, "p": ["x"] * 200}), ["p"])]
    assert [text for piece in pieces for text in piece.column("c").to_pylist()] == texts
