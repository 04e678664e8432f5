"""Rows that kill, stop or exhaust the replica that runs them: each is found and costs no other row anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gptj_batch.errors import InputError
from gptj_batch.records.attempts import Attempts
from gptj_batch.records.plan import Unit
from gptj_batch.stages.careful import RowCare
from gptj_batch.stages.careful_stage import CarefulStage, Stage
from integration.clusters import connect
from integration.desk import Desk
from integration.faulty import DEAD, HANG, KILL, MEMORY, faulty_job, texts, undisturbed_rows
from integration.probes import Deadly, MakeRows
from integration.running import Outcome, output_table, run_report
from pipelines.ray_errors import as_ours
from pipelines.whole_blocks import on_cpu, unit_numbers

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

NUM_ROWS, UNIT_ROWS = 150, 32


@pytest.fixture(scope="module")
def expected(new_desk: Callable[[str], Desk]) -> list[dict[str, Any]]:
    """The rows of a run over the same rows without marks."""
    return undisturbed_rows(new_desk("undisturbed"), NUM_ROWS)


def check_all_but(desk: Desk, ended: Outcome, bad: dict[int, str], expected: list[dict[str, Any]]) -> None:
    """Hold a run's rows against those of an undisturbed one: only the bad ones differ."""
    assert ended.code == 0, ended.stderr
    rows = output_table(desk.output()).to_pylist()
    assert [row["id"] for row in rows] == list(range(NUM_ROWS))
    assert {row["id"] for row in rows if row["error"] is not None} == set(bad)
    for row, wanted in zip(rows, expected, strict=True):
        if row["id"] in bad:
            assert bad[row["id"]] in row["error"]
            assert row["generated_text"] is None
        else:
            assert row == wanted
    report = run_report(desk.output())
    assert (report["rows"], report["done"], report["failed"]) == (NUM_ROWS, NUM_ROWS - len(bad), len(bad))
    assert not (desk.output() / "_gptj_batch" / "attempts").exists()


def num_starts(desk: Desk) -> int:
    return len(list((desk.folder / "starts").iterdir()))


def job(desk: Desk, table: pa.Table, **settings: object) -> Path:
    (desk.folder / "starts").mkdir()
    return faulty_job(desk, table, faults={"starts_folder": str(desk.folder / "starts")}, **settings)


def test_a_row_that_kills_its_process_is_found_with_few_restarts(desk: Desk, expected: list[dict[str, Any]]) -> None:
    ended = desk.run(job(desk, texts(NUM_ROWS, {77: KILL})))
    assert num_starts(desk) <= 1 + 5 + 2, "log2(32) + 2 restarts"
    check_all_but(
        desk, ended, {77: "run alone, twice, the process ended (killed, aborted, or out of memory)"}, expected
    )


@pytest.mark.extended
def test_a_row_that_hangs_is_found_and_named(desk: Desk, expected: list[dict[str, Any]]) -> None:
    errors = {"max_failed_rows": 0.5, "row_timeout_s": 2.0}
    ended = desk.run(job(desk, texts(NUM_ROWS, {5: HANG}), errors=errors))
    assert num_starts(desk) <= 1 + 5 + 2
    check_all_but(desk, ended, {5: "nothing got done within errors.row_timeout_s (2 s)"}, expected)


def test_rows_too_large_for_the_memory_are_found_in_the_same_process(
    desk: Desk, expected: list[dict[str, Any]]
) -> None:
    ended = desk.run(job(desk, texts(NUM_ROWS, {0: MEMORY, 149: MEMORY})))
    assert num_starts(desk) == 1
    check_all_but(desk, ended, dict.fromkeys((0, 149), "the engine raised MemoryError"), expected)


@pytest.mark.extended
def test_an_engine_that_dies_of_a_row_is_started_anew(desk: Desk, expected: list[dict[str, Any]]) -> None:
    ended = desk.run(job(desk, texts(NUM_ROWS, {149: DEAD})))
    assert num_starts(desk) <= 1 + 5 + 2
    check_all_but(desk, ended, {149: "the engine stopped"}, expected)


def test_where_every_row_kills_its_process_the_run_ends_and_says_so(desk: Desk) -> None:
    ended = desk.run(job(desk, texts(1, {0: KILL}).take([0] * 3), errors={"max_deadly_rows": 0}))
    assert ended.code == 1
    assert "1 rows each ended the replica that ran them, more than errors.max_deadly_rows (0) allows" in ended.stderr
    assert json.loads((desk.output() / "_gptj_batch" / "run.json").read_text())["exit_code"] == 1


NUM_UNITS, FEW_ROWS = 3, 8  # of what goes through a stage on the CPU


def through(desk: Desk, stage: Stage) -> list[dict[str, Any]]:
    """Send units through a stage on the CPU, as a run does, and return their rows."""
    care = RowCare(attempts=Attempts(str(desk.output()), "run"))

    def unit(index: int) -> Unit:
        return Unit(index, "/data/a.parquet", "parquet", 0, FEW_ROWS, FEW_ROWS, 1, pa.schema([]))

    careful = CarefulStage(stage, "tokenized", care, unit, lambda table: int(table.column("unit")[0].as_py()))
    made = on_cpu(on_cpu(unit_numbers(NUM_UNITS), MakeRows([FEW_ROWS] * NUM_UNITS)), careful)
    tables = made.iter_batches(batch_size=None, batch_format="pyarrow")
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: (row["unit"], row["row"]))


def deadly(desk: Desk) -> Deadly:
    (desk.folder / "starts").mkdir()
    connect(desk.cluster)
    return Deadly(1, 5, str(desk.folder / "starts"))


def test_a_row_that_kills_a_stage_on_the_cpu_is_found_and_ends_no_run(desk: Desk) -> None:
    rows = through(desk, deadly(desk))
    assert [(row["unit"], row["row"]) for row in rows] == [
        (n, row) for n in range(NUM_UNITS) for row in range(FEW_ROWS)
    ]
    for row in rows:
        error = "the row was left out: tokenized alone, twice, the process ended (killed, aborted, or out of memory)"
        assert row["error"] == (error if (row["unit"], row["row"]) == (1, 5) else "")
    assert num_starts(desk) <= 3 + 2, "log2(8) + 2 processes ended"


def test_a_unit_that_kills_a_stage_that_needs_it_whole_ends_the_run_and_is_named(desk: Desk) -> None:
    with pytest.raises(Exception) as caught:
        through(desk, deadly(desk).__call__)
    error = as_ours(caught.value)
    assert isinstance(error, InputError), caught.value
    assert "unit 1 (/data/a.parquet, rows 0 to 8) cannot be tokenized: 4 times the process ended" in str(error)
    assert num_starts(desk) == 4
