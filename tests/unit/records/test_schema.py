import json

import pandas as pd
import pyarrow as pa
import pytest

from gptj_batch.errors import ConfigError
from gptj_batch.records.schema import append, check_storable, name_list, one_dictionary, output_schema, select_columns

from .tables import every_type

ADDED = pa.schema([("label", pa.string()), ("error", pa.string())])


def test_added_columns_come_after_the_inputs_which_stay_as_they_were():
    schema = output_schema(every_type().schema, ADDED)
    assert list(schema)[:-2] == list(every_type().schema)
    assert schema.names[-2:] == ["label", "error"]


def test_schema_and_field_metadata_are_kept():
    schema = output_schema(every_type().schema, ADDED)
    assert schema.metadata == {b"who": b"tests"}
    assert schema.field("list").metadata == {b"note": b"of list"}


def test_a_pandas_index_comes_back_after_columns_were_added():
    frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="key"))
    table = append(pa.Table.from_pandas(frame), {"label": pa.array(["p", "q"])})
    assert "pandas" in json.dumps({k.decode(): v.decode() for k, v in table.schema.metadata.items()})
    back = table.to_pandas()
    assert list(back.index) == ["x", "y"] and list(back.columns) == ["a", "label"]


def test_a_name_clash_names_the_column_and_advises_a_prefix():
    with pytest.raises(ConfigError, match=r'output\.prefix.*"label".*set output\.prefix'):
        output_schema(pa.schema([("label", pa.int64())]), ADDED)


def test_a_prefix_resolves_a_clash():
    schema = output_schema(pa.schema([("label", pa.int64())]), ADDED, prefix="gptj_")
    assert schema.names == ["label", "gptj_label", "gptj_error"]


def test_a_prefix_can_make_a_clash():
    with pytest.raises(ConfigError, match='"x_label"'):
        output_schema(pa.schema([("x_label", pa.int64())]), ADDED, prefix="x_")


def test_append_takes_a_table_or_arrays_and_changes_no_value():
    table = every_type()
    more = {"label": pa.array(["a", None, "b"]), "error": pa.nulls(3, pa.string())}
    appended = append(table, more)
    assert appended.equals(append(table, pa.table(more)))
    assert appended.select(table.column_names).equals(table, check_metadata=True)
    assert appended.column("label").to_pylist() == ["a", None, "b"]


def test_append_gives_the_same_schema_to_an_empty_table():
    table, more = every_type(), {"label": pa.array(["a", None, "b"])}
    empty = append(table.slice(0, 0), {"label": pa.array([], pa.string())})
    assert empty.schema.equals(append(table, more).schema, check_metadata=True)


def test_append_refuses_another_number_of_rows():
    with pytest.raises(AssertionError):
        append(every_type(), {"label": pa.array(["a"])})


def test_selected_columns_come_in_the_order_asked_for_with_their_metadata():
    schema = select_columns(every_type().schema, ["list", "bool"])
    assert schema.names == ["list", "bool"]
    assert schema.metadata == {b"who": b"tests"} and schema.field("bool").metadata == {b"note": b"of bool"}


def test_no_selection_keeps_every_column():
    assert select_columns(every_type().schema, None) == every_type().schema


def test_an_unknown_column_is_refused_with_the_nearest_and_the_known_names():
    with pytest.raises(ConfigError, match=r'input\.columns.*"txet".*did you mean "text".*"id", "text"'):
        select_columns(pa.schema([("id", pa.int64()), ("text", pa.string())]), ["txet"])


@pytest.mark.parametrize("columns", [[], ["id", "id"]])
def test_an_empty_or_repeated_selection_is_refused(columns):
    with pytest.raises(ConfigError, match=r"input\.columns"):
        select_columns(pa.schema([("id", pa.int64())]), columns)


def test_many_or_long_names_are_cut_in_messages():
    listed = name_list([f"{i}" + "x" * 500 for i in range(1000)])
    assert len(listed) < 1200 and listed.endswith("and 980 more")


def test_every_type_that_parquet_holds_is_storable():
    check_storable(every_type().schema)


def test_a_type_without_a_form_in_parquet_is_named():
    schema = pa.schema([("ok", pa.int64()), ("odd", pa.month_day_nano_interval()), ("void", pa.struct([]))])
    with pytest.raises(ConfigError, match=r'"odd" \(month_day_nano_interval\), "void"'):
        check_storable(schema)


def test_one_dictionary_unifies_chunks_and_says_when_it_cannot():
    kind = pa.dictionary(pa.int8(), pa.string())
    few = pa.chunked_array([pa.array(["a", "b"]).cast(kind), pa.array(["b", "c"]).cast(kind)])
    unified = one_dictionary(pa.table({"c": few}))
    assert unified is not None and unified.column("c").chunk(0).dictionary.to_pylist() == ["a", "b", "c"]
    many = [pa.array([f"{side}{i}" for i in range(100)]).cast(kind) for side in "lr"]
    assert one_dictionary(pa.table({"c": pa.chunked_array(many)})) is None
