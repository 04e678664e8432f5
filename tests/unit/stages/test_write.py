import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.read import UnitPlan
from gptj_batch.stages.columns import UNIT
from gptj_batch.stages.decode import DecodeStage
from gptj_batch.stages.tokenize import TokenizeStage
from gptj_batch.stages.write import COUNTS, WriteStage
from gptj_batch.tasks.base import Task
from stages.tables import POSITIONS, classify, generate, infer, plan, read, records


def finished(planned: UnitPlan, task: Task, model_folder: Path, unit: int = 0, prefix: str = "") -> pa.Table:
    table = TokenizeStage(task, str(model_folder), None, POSITIONS)(read(planned, unit))
    return DecodeStage(task, str(model_folder), None, prefix)(infer(task, model_folder)(table))


def write(planned: UnitPlan, table: pa.Table, output: Path, error: str = "error") -> dict[str, Any]:
    counts = WriteStage(planned, str(output), error, {"job": "x"})(table)
    assert counts.schema.equals(COUNTS) and counts.num_rows == 1
    row: dict[str, Any] = counts.to_pylist()[0]
    return row


def unit_file(output: Path, index: int = 0) -> Path:
    return OutputFolder.at(output).unit(index)


def test_a_unit_becomes_a_file_without_a_trace_of_the_stages(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records())
    write(planned, finished(planned, classify(), model_folder), tmp_path / "out")
    written = pq.read_table(unit_file(tmp_path / "out"))
    assert written.column_names == ["id", "text", "label", "label_score", "label_scores", "error"]
    assert written.select(["id", "text"]).equals(records())
    assert written.schema.field("id").metadata[b"of"] == b"id"


def test_its_counts_are_told(tmp_path: Path, model_folder: Path) -> None:
    task = generate(truncate="left")
    planned = plan(tmp_path / "in", records(["a", None, "x" * 100, "x" * 101]))
    counts = write(planned, finished(planned, task, model_folder), tmp_path / "out")
    backend = json.loads(counts.pop("backend"))
    assert counts == {
        "unit": 0,
        "rows": 4,
        "failed": 1,
        "truncated": 2,
        "duplicates": 0,
        "prompt_tokens": 2 + 60 + 60,
        "generated_tokens": 3 * 4,
    }
    assert backend["kind"] == "fake"


def test_rows_that_were_computed_with_another_are_counted_and_their_tokens_are_not(
    tmp_path: Path, model_folder: Path
) -> None:
    task = generate(deduplicate=True)
    planned = plan(tmp_path / "in", records(["a", "b", None, "a", "a"]))
    counts = write(planned, finished(planned, task, model_folder), tmp_path / "out")
    assert (counts["duplicates"], counts["prompt_tokens"], counts["generated_tokens"]) == (2, 2 + 2, 2 * 4)


def test_the_error_column_may_have_a_prefix(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records())
    table = finished(planned, generate(), model_folder, prefix="g_")
    assert write(planned, table, tmp_path / "out", "g_error")["failed"] == 2


def test_the_lineage_and_what_the_input_said_stand_in_the_file(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records())
    write(planned, finished(planned, generate(), model_folder), tmp_path / "out")
    metadata = pq.read_schema(unit_file(tmp_path / "out")).metadata
    lineage = json.loads(metadata[b"gptj_batch"])
    assert lineage["job"] == "x" and lineage["backend"]["kind"] == "fake"
    assert metadata[b"who"] == b"tests"
    assert not any(key.startswith(b"gptj_batch_backend") for key in metadata)


def test_a_unit_in_the_middle_is_written_under_its_number(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records(["a", "b", "c"]), max_rows=1)
    assert write(planned, finished(planned, generate(), model_folder, 2), tmp_path / "out")["unit"] == 2
    assert OutputFolder.at(tmp_path / "out").unit_indices() == [2]


def test_writing_a_unit_again_replaces_it(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records())
    table = finished(planned, generate(), model_folder)
    assert write(planned, table, tmp_path / "out") == write(planned, table, tmp_path / "out")
    assert pq.read_metadata(unit_file(tmp_path / "out")).num_rows == 4
    assert not list(OutputFolder.at(tmp_path / "out").staging.iterdir())


def test_a_unit_with_more_or_fewer_rows_than_planned_is_not_written(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records())
    table = finished(planned, generate(), model_folder)
    for wrong in (table.slice(1), pa.concat_tables([table, table.slice(0, 1)])):
        with pytest.raises(OutputError, match=r"unit 0 .*rows 0 to 4\) came back with"):
            write(planned, wrong, tmp_path / "out")
    assert not unit_file(tmp_path / "out").exists()


def test_units_that_were_joined_are_not_written(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records(["a", "b"]), max_rows=1)
    tables = [finished(planned, generate(), model_folder, unit) for unit in (0, 1)]
    with pytest.raises(AssertionError, match="one block, one unit"):
        write(planned, pa.concat_tables(tables), tmp_path / "out")
    assert OutputFolder.at(tmp_path / "out").unit_indices() == []


def test_an_input_without_rows_is_a_file_with_columns(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records([]))
    counts = write(planned, finished(planned, classify(), model_folder), tmp_path / "out")
    assert (counts["unit"], counts["rows"], counts["failed"]) == (0, 0, 0)
    written = pq.read_table(unit_file(tmp_path / "out"))
    assert written.num_rows == 0 and "label_scores" in written.column_names


@pytest.mark.parametrize("texts", [[], [None, None], ["a"]], ids=["empty", "failed", "good"])
def test_the_files_of_all_units_have_one_schema(tmp_path: Path, model_folder: Path, texts: list[str | None]) -> None:
    schemas = []
    for name, rows in (("this", records(texts)), ("that", records())):
        planned = plan(tmp_path / name, rows)
        write(planned, finished(planned, generate(logprobs=True), model_folder), tmp_path / f"{name}-out")
        schemas.append(pq.read_schema(unit_file(tmp_path / f"{name}-out")))
    assert schemas[0].equals(schemas[1], check_metadata=True)


def test_a_unit_that_does_not_fit_onto_the_disk_stops_the_run(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records())
    table = finished(planned, generate(), model_folder)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"output\.path: .* cannot be written"):
        write(planned, table, tmp_path / "file" / "out")


def test_the_unit_number_is_taken_from_the_table(tmp_path: Path, model_folder: Path) -> None:
    planned = plan(tmp_path / "in", records(["a", "b"]), max_rows=1)
    assert finished(planned, generate(), model_folder, 1).column(UNIT).to_pylist() == [1]
