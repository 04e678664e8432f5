"""The caller's own tables: what is read of them, and what is given back."""

from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.records.rows import records_of
from pipelines.tables import callers_table, fingerprint

ADDED = pa.table(
    {
        "label": pa.array(["x", None]),
        "number": pa.array([1, None], pa.int32()),
        "scores": pa.array([[("x", 0.5), ("y", 0.5)], None], pa.map_(pa.string(), pa.float64())),
    }
)


def test_a_frame_gives_only_the_columns_that_are_asked_for() -> None:
    table = callers_table(pd.DataFrame({"a": ["x"], "b": [object()], 7: [1]}))
    assert table.names == ["a", "b"] and table.num_rows == 1
    assert table.arrow(["a"]).to_pydict() == {"a": ["x"]}


def test_missing_texts_of_pandas_are_nulls() -> None:
    table = callers_table(pd.DataFrame({"a": pd.Series(["x", np.nan, None, pd.NA], dtype=object)}))
    assert table.arrow(["a"]).to_pydict() == {"a": ["x", None, None, None]}


def test_whole_numbers_have_nulls_and_maps_are_dictionaries_in_a_frame() -> None:
    done = callers_table(pd.DataFrame({"a": [1, 2]}, index=[5, 5])).with_columns(ADDED)
    assert done.index.tolist() == [5, 5]
    assert str(done.number.dtype) == "Int32" and done.number.isna().tolist() == [False, True]
    assert done.scores.iloc[0] == {"x": 0.5, "y": 0.5} and done.scores.iloc[1] is None


def test_a_text_that_is_no_unicode_is_an_error_of_its_row_alone() -> None:
    rows = callers_table(pd.DataFrame({"a": pd.Series(["good", "bad \ud800", None], dtype=object)})).arrow(["a"])
    good, bad, none = records_of(rows, ["a"])
    assert (good, none) == ({"a": "good"}, {"a": None})
    assert isinstance(bad, RecordError) and "invalid UTF-8" in str(bad) and "bad" not in str(bad)


def test_a_column_of_several_types_is_refused_without_its_values() -> None:
    frame = pd.DataFrame({"a": pd.Series(["secret", 3, 2.5], dtype=object)})
    with pytest.raises(ConfigError, match=r"float, int, str.*astype\(str\)") as raised:
        callers_table(frame).arrow(["a"])
    assert "secret" not in str(raised.value)


def test_two_columns_of_one_name_are_refused_where_they_are_read() -> None:
    frame = pd.DataFrame([[1, 2, "x"]], columns=["a", "a", "b"])
    assert callers_table(frame).arrow(["b"]).num_rows == 1
    with pytest.raises(ConfigError, match="more than one column"):
        callers_table(frame).arrow(["a"])


def test_names_of_several_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="MultiIndex"):
        callers_table(pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])))


def test_a_frame_that_is_written_keeps_its_index_or_is_refused() -> None:
    table = callers_table(pd.DataFrame({"a": ["x"]}, index=pd.Index(["r"], name="place")))
    assert table.arrow().to_pandas().index.name == "place"
    with pytest.raises(ConfigError, match="no one type"):
        callers_table(pd.DataFrame({"a": [object()]})).arrow()


def test_a_table_keeps_the_metadata_of_its_fields() -> None:
    field = pa.field("a", pa.int8(), metadata={"unit": "m"})
    before = pa.table([pa.array([1, 2], pa.int8())], schema=pa.schema([field], metadata={"of": "table"}))
    after = callers_table(before).with_columns(ADDED)
    assert after.schema.metadata == {b"of": b"table"} and after.schema.field("a").metadata == {b"unit": b"m"}
    assert after.column_names == ["a", *ADDED.column_names]


def test_a_dataset_has_structures_for_maps_and_keeps_its_columns_order() -> None:
    before = datasets.Dataset.from_dict({"a": [1, 2, 3]}).select([2, 0])
    after = callers_table(before).with_columns(ADDED)
    assert after[0] == {"a": 3, "label": "x", "number": 1, "scores": {"x": 0.5, "y": 0.5}}
    assert after[1]["a"] == 1 and after[1]["label"] is None
    assert callers_table(before).arrow(["a"]).to_pydict() == {"a": [3, 1]}


def test_a_dataset_whose_maps_are_all_null_has_the_column_all_the_same() -> None:
    none = pa.table({"scores": pa.nulls(1, pa.map_(pa.string(), pa.float64()))})
    after = callers_table(datasets.Dataset.from_dict({"a": [1]})).with_columns(none)
    assert after.column_names == ["a", "scores"]


def test_a_dataset_that_shows_some_columns_shows_the_added_ones_too() -> None:
    before = datasets.Dataset.from_dict({"a": [1, 2], "b": [3, 4]}).with_format("numpy", columns=["b"])
    after = callers_table(before).with_columns(ADDED.select(["label"]))
    assert set(after[0]) == {"b", "label"} and after.column_names == ["a", "b", "label"]


def test_a_polars_frame_is_read_and_given_back() -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    before = polars.DataFrame({"a": ["x", "y"]})
    assert callers_table(before).arrow(["a"]).column("a").to_pylist() == ["x", "y"]
    after = callers_table(before).with_columns(ADDED)
    assert after.columns == ["a", *ADDED.column_names] and after["scores"][0] == {"x": 0.5, "y": 0.5}


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (["a text"], "pandas.DataFrame"),
        ({"text": ["a"]}, "pandas.DataFrame"),
        (pd.Series(["a"]), "to_frame"),
        (datasets.DatasetDict(), "train"),
        (pa.record_batch({"a": [1]}), "from_batches"),
        (3, "got int"),
    ],
)
def test_what_is_no_table_is_refused_with_what_to_do(data: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match="must be a Ray Dataset") as raised:
        callers_table(data)
    assert hint in str(raised.value)


def test_a_fingerprint_is_of_the_content_and_not_of_its_chunks() -> None:
    whole = pa.table({"a": ["x", "yy", None, "z"], "n": [1, 2, 3, 4]})
    pieces = pa.concat_tables([whole[:1], whole[1:3], whole[3:]])
    assert fingerprint(whole) == fingerprint(pieces)
    assert fingerprint(whole) != fingerprint(whole[:3]) != fingerprint(whole[1:])
