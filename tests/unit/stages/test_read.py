from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gptj_batch.errors import InputError
from gptj_batch.stages.columns import KEY, UNIT, without_internal
from gptj_batch.stages.read import ReadStage
from stages.tables import place, plan, read, records


def keys(table: pa.Table) -> list[str]:
    values: list[str] = table.column(KEY).to_pylist()
    return values


def test_the_rows_of_a_unit_come_with_their_keys_and_its_number(tmp_path: Path) -> None:
    planned = plan(tmp_path, records(["a", "b", "c", "d", "e"]), max_rows=2)
    table = read(planned, 1)
    assert table.column("text").to_pylist() == ["c", "d"]
    assert keys(table) == ["rows.parquet:2", "rows.parquet:3"]
    assert table.column(UNIT).to_pylist() == [1, 1]
    assert keys(read(planned, 2)) == ["rows.parquet:4"]


def test_the_place_in_this_run_is_not_the_units_number(tmp_path: Path) -> None:
    planned = plan(tmp_path, records(["a", "b", "c"]), max_rows=1)
    stage = ReadStage(planned, np.array([0, 2], np.int32), None, None)
    assert stage(place(1)).column(UNIT).to_pylist() == [2]


def test_the_records_are_as_they_were_in_the_file(tmp_path: Path) -> None:
    table = without_internal(read(plan(tmp_path, records())))
    assert table.equals(records())
    assert table.schema.metadata[b"who"] == b"tests"
    assert table.schema.field("id").metadata[b"of"] == b"id"


def test_moving_a_dataset_changes_no_key(tmp_path: Path) -> None:
    here, there = (read(plan(tmp_path / folder, records())) for folder in ("here", "else/where"))
    assert keys(here) == keys(there)


def test_only_the_columns_that_are_wanted_are_read(tmp_path: Path) -> None:
    assert without_internal(read(plan(tmp_path, records()), columns=["text"])).column_names == ["text"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([7, -1, 0]), ["7", "-1", "0"]),
        (pa.array(["x", "", "é"]), ["x", "rows.parquet:1", "é"]),
        (pa.array(["x", None, "y"]), ["x", "rows.parquet:1", "y"]),
        (pa.array([1.5, float("nan"), None]), ["1.5", "nan", "rows.parquet:2"]),
        (pa.array([[1, 2], [], None]), ["[1, 2]", "[]", "rows.parquet:2"]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (
            pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"b"]).buffers()),
            ["a", "rows.parquet:1", "b"],
        ),
        (pa.array([1, 2**40, 3], pa.timestamp("ns")), None),
        (
            pa.array([0, 2**49, 1000], pa.timestamp("ms")),
            ["1970-01-01 00:00:00", "rows.parquet:1", "1970-01-01 00:00:01"],
        ),
    ],
)
def test_a_key_column_names_the_rows_and_place_where_it_cannot(
    tmp_path: Path, values: pa.Array, expected: list[str] | None
) -> None:
    planned = plan(tmp_path, pa.table({"id": pa.array(range(3)), "key": values}))
    found = keys(read(planned, key="key"))
    assert len(found) == 3 and all(found)
    if expected is not None:
        assert found == expected


def test_a_unit_without_rows_has_the_same_columns(tmp_path: Path) -> None:
    full = read(plan(tmp_path / "full", records()), key="text")
    empty = read(plan(tmp_path / "empty", records([])), key="text")
    assert empty.num_rows == 0
    assert empty.schema.equals(full.schema, check_metadata=True)


def test_a_file_that_changed_since_it_was_planned_is_named(tmp_path: Path) -> None:
    planned = plan(tmp_path, records())
    plan(tmp_path, records(["other", "rows"]))
    with pytest.raises(InputError, match=r"rows\.parquet: the file changed since it was planned"):
        read(planned)
