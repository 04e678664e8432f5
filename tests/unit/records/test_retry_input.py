"""Failed rows of outputs in every form: taken from the input, and put back where they were."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import InputError, OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.part_reader import lines_of
from gptj_batch.records.plan import Unit, UnitPlan, plan_units
from gptj_batch.records.publish import publish
from gptj_batch.records.read import list_files, read_unit
from gptj_batch.records.retry import KEY, PART, ROW, RetryFolder
from gptj_batch.records.retry_input import failed_rows_of_input
from gptj_batch.records.write import write_unit

from .tables import every_type

NUM_ROWS, UNIT_ROWS = 60, 8
BAD = {0, 7, 8, 30, 31, 59}
ADDED = ["g_label", "g_scores", "g_error"]
LABELS = pa.map_(pa.string(), pa.float64())
SMALL = 600  # so that there are several parts
FORMS = {
    "arrow": PartForm(target_file_bytes=SMALL, format="arrow"),
    "jsonl": PartForm(target_file_bytes=SMALL, format="jsonl", compression="none"),
    "gzip": PartForm(target_file_bytes=SMALL, format="jsonl", compression="gzip"),
    "parquet by": PartForm(target_file_bytes=SMALL, partition_by=("kind", "day")),
    "arrow by": PartForm(target_file_bytes=SMALL, format="arrow", partition_by=("kind",)),
    "jsonl by": PartForm(target_file_bytes=SMALL, format="jsonl", compression="zstd", partition_by=("day",)),
}


def write_input(folder: Path) -> UnitPlan:
    """Two files with columns of every type, a text and a number to partition by."""
    folder.mkdir()
    types = pa.concat_tables([every_type()] * NUM_ROWS).slice(0, NUM_ROWS)
    columns = {
        "id": pa.array(range(NUM_ROWS), pa.int64()),
        "kind": pa.array([["a", "b", None][row % 3] for row in range(NUM_ROWS)], pa.string()),
        "day": pa.array([row // 7 % 2 for row in range(NUM_ROWS)], pa.int32()),
        **{f"of_{name}": types.column(name) for name in types.column_names},
    }
    table = pa.table(columns)
    pq.write_table(table.slice(0, 25), folder / "a.parquet")
    pq.write_table(table.slice(25), folder / "b.parquet")
    return plan_units(list_files(str(folder)), UNIT_ROWS)


def answers(ids: list[int], bad: set[int], word: str) -> dict[str, pa.Array]:
    return {
        "g_label": pa.array([None if row in bad else f'{word} "g_label":null {row}' for row in ids], pa.string()),
        "g_scores": pa.array([None if row in bad else [("g_label", row / 2)] for row in ids], LABELS),
        "g_error": pa.array([f'failed ,"g_error": {row}' if row in bad else None for row in ids], pa.string()),
    }


def made(folder: Path, plan: UnitPlan, form: PartForm, bad: set[int] = BAD) -> Path:
    """Publish an output of the input in which some rows failed."""
    for index in range(plan.num_units):
        rows = read_unit(plan.unit(index))
        for name, values in answers(rows.column("id").to_pylist(), bad, "word").items():
            rows = rows.append_column(name, values)
        write_unit(rows, folder, index, metadata=b"{}")
    publish(folder, plan.num_units, form, NUM_ROWS)
    return folder


def keys(rows: pa.Table, unit: Unit) -> pa.Array:
    return pa.array([f"{Path(unit.path).name}:{unit.start + row}" for row in range(rows.num_rows)], pa.string())


def take_out(output: Path, plan: UnitPlan, form: PartForm) -> int:
    return RetryFolder(output).write_rows(failed_rows_of_input(output, plan, None, form.partition_by, "g_error", keys))


def do_again(output: Path, bad: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """Do the rows that were taken out, as a run would."""
    retry = RetryFolder(output)
    rows = pq.read_table(retry.rows)
    for name, values in answers(rows.column("id").to_pylist(), bad, "word").items():
        rows = rows.append_column(name, values)
    retry.output.mkdir()
    pq.write_table(rows, retry.output / "part-00000.parquet")


def contents(output: Path) -> dict[str, Any]:
    """Every part: an Arrow table, or its lines."""
    folder = OutputFolder.at(output)
    found: dict[str, Any] = {}
    for part in folder.parts():
        name, ending = part.relative_to(output).as_posix(), "".join(part.suffixes)
        if ending == ".parquet":
            found[name] = pq.read_table(part, partitioning=None)
        elif ending == ".arrow":
            found[name] = pa.ipc.open_file(pa.memory_map(str(part))).read_all()
        else:
            found[name] = list(lines_of(part, ending))
    return found


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_failed_rows_are_taken_as_they_were_read_with_their_keys(tmp_path: Path, form: PartForm) -> None:
    plan = write_input(tmp_path / "in")
    output = made(tmp_path / "out", plan, form)
    assert take_out(output, plan, form) == len(BAD)
    rows = pq.read_table(RetryFolder(output).rows)
    assert sorted(rows.column("id").to_pylist()) == sorted(BAD)
    numbers = rows.column("id").to_pylist()
    assert rows.column(KEY).to_pylist() == [f"a.parquet:{n}" if n < 25 else f"b.parquet:{n - 25}" for n in numbers]
    read = pa.concat_tables([read_unit(plan.unit(index)) for index in range(plan.num_units)])
    for name in read.column_names:
        assert rows.schema.field(name).type == pq.read_schema(tmp_path / "in" / "a.parquet").field(name).type
    by_number = rows.select(["id", "kind", "day"]).to_pylist()
    assert by_number == [read.select(["id", "kind", "day"]).slice(number, 1).to_pylist()[0] for number in numbers]
    assert list(zip(rows.column(PART).to_pylist(), rows.column(ROW).to_pylist(), strict=True)) == sorted(
        zip(rows.column(PART).to_pylist(), rows.column(ROW).to_pylist(), strict=True)
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_rows_are_those_that_failed_also_where_a_part_before_them_is_gone(tmp_path: Path, form: PartForm) -> None:
    plan = write_input(tmp_path / "in")
    output = made(tmp_path / "out", plan, form)
    take_out(output, plan, form)
    rows = pq.read_table(RetryFolder(output).rows, columns=["id", KEY, PART]).to_pylist()
    gone = min(row[PART] for row in rows)
    (output / gone).unlink()
    left = [row for row in rows if row[PART] != gone]
    assert take_out(output, plan, form) == len(left) < len(rows)
    if left:  # some forms have one part only
        assert pq.read_table(RetryFolder(output).rows, columns=["id", KEY, PART]).to_pylist() == left


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_became_of_them_stands_where_they_failed_and_all_else_is_as_it_was(tmp_path: Path, form: PartForm) -> None:
    plan = write_input(tmp_path / "in")
    output, wanted = made(tmp_path / "out", plan, form), made(tmp_path / "wanted", plan, form, {30})
    take_out(output, plan, form)
    do_again(output, {30})
    retry = RetryFolder(output)
    for _ in range(2):  # the second time after a crash before the end
        retry.put_back(ADDED, form, lambda: None)
        if form.format == "jsonl":
            joined = [sorted(line for part in contents(one).values() for line in part) for one in (output, wanted)]
            assert joined[0] == joined[1]
        else:
            tables = [pa.concat_tables(contents(one).values()) for one in (output, wanted)]
            rows = [table.select(["id", *ADDED]).sort_by("id").to_pylist() for table in tables]
            assert rows[0] == rows[1]
            assert tables[0].schema.equals(tables[1].schema, check_metadata=True)
    retry.remove()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_where_no_row_failed_there_is_nothing_to_do(tmp_path: Path, form: PartForm) -> None:
    plan = write_input(tmp_path / "in")
    output = made(tmp_path / "out", plan, form, set())
    assert take_out(output, plan, form) == 0 and not RetryFolder(output).is_open


def test_a_part_that_is_damaged_and_an_input_that_is_gone_are_named(tmp_path: Path) -> None:
    plan, form = write_input(tmp_path / "in"), FORMS["arrow"]
    output = made(tmp_path / "out", plan, form)
    (tmp_path / "in" / "b.parquet").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"b\.parquet: rows"):
        take_out(output, plan, form)
    part = OutputFolder.at(output).parts()[1]
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(OutputError, match=r"part-00001\.arrow cannot be read: .*Nothing was changed"):
        take_out(output, plan, form)
    assert not RetryFolder(output).is_open


def test_another_input_than_the_outputs_is_found_out(tmp_path: Path) -> None:
    plan, form = write_input(tmp_path / "in"), FORMS["parquet by"]
    output = made(tmp_path / "out", plan, form)
    table = pq.read_table(tmp_path / "in" / "b.parquet")
    pq.write_table(table.set_column(1, "kind", pa.nulls(table.num_rows, pa.string())), tmp_path / "in" / "b.parquet")
    with pytest.raises(OutputError, match="it is not what the output was made of"):
        take_out(output, plan_units(list_files(str(tmp_path / "in")), UNIT_ROWS), form)
