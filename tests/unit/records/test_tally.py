from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import OutputError
from gptj_batch.records.footers import InputFile, InputFiles
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.plan import UnitPlan, plan_units
from gptj_batch.records.tally import check_all_done, tally_units
from gptj_batch.records.write import write_unit

SCHEMA = pa.schema([("id", pa.int64())])


def plan(num_rows: int = 25) -> UnitPlan:
    file = InputFile("/data/a.parquet", "parquet", num_rows, 100, 1, SCHEMA)
    return plan_units(InputFiles((file,), (), SCHEMA), 10)


def write(output: Path, index: int, errors: list[str | None]) -> Path:
    return write_unit(pa.table({"g.error": pa.array(errors, pa.string())}), output, index)


def test_errors_are_counted_over_the_units_that_are_there(tmp_path: Path) -> None:
    assert tally_units(tmp_path, plan(), "g.error") == {}
    write(tmp_path, 0, ["a", None, "b", *[None] * 6, "a"])
    write(tmp_path, 2, [None, "a", None, None, None])
    write(tmp_path, 7, ["of an older plan"])
    assert tally_units(tmp_path, plan(), "g.error") == {"a": 3, "b": 1}


def test_units_that_are_not_what_was_planned_are_named(tmp_path: Path) -> None:
    for index, num_rows in enumerate((10, 9, 6)):
        write(tmp_path, index, [None] * num_rows)
    unit = OutputFolder.at(tmp_path).unit(0)
    unit.write_bytes(unit.read_bytes()[:-9])
    with pytest.raises(OutputError) as caught:
        tally_units(tmp_path, plan(), "g.error")
    message = str(caught.value)
    assert "3 finished units" in message and "Delete the files" in message
    assert "unit 0 (/data/a.parquet, rows 0 to 10) cannot be read" in message
    assert (
        "unit 1 (/data/a.parquet, rows 10 to 20) has 9 rows; unit 2 (/data/a.parquet, rows 20 to 25) has 6" in message
    )


def test_a_unit_without_the_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [0] * 10}), write(tmp_path, 0, [None] * 10))
    with pytest.raises(OutputError, match=r"unit 0 .* cannot be read"):
        tally_units(tmp_path, plan(), "g.error")


def test_of_many_wrong_units_the_first_five_are_named(tmp_path: Path) -> None:
    for index in range(7):
        write(tmp_path, index, [None])
    with pytest.raises(OutputError, match=r"7 finished units .*unit 4 .*; and 2 more\. Nothing"):
        tally_units(tmp_path, plan(70), "g.error")


def test_units_that_are_missing_are_named(tmp_path: Path) -> None:
    write(tmp_path, 1, [None] * 10)
    with pytest.raises(OutputError, match=r"2 of 3 units .*: unit 0 \(/data/a.parquet, rows 0 to 10\); unit 2 .*again"):
        check_all_done(tmp_path, plan())
    for index, num_rows in ((0, 10), (2, 5)):
        write(tmp_path, index, [None] * num_rows)
    check_all_done(tmp_path, plan())
