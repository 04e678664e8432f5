"""Rows that kill, stop or exhaust the replica that runs them: each is found and costs no other row anything."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from integration.desk import Desk
from integration.faulty import DEAD, HANG, KILL, MEMORY, faulty_job, texts
from integration.running import Outcome, output_table, run_report

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

NUM_ROWS, UNIT_ROWS = 150, 32


def check_all_but(desk: Desk, ended: Outcome, bad: dict[int, str]) -> None:
    """Hold a run's rows against those of one over the same rows without marks: only the bad ones differ."""
    assert ended.code == 0, ended.stderr
    rows = output_table(desk.output()).to_pylist()
    assert desk.run(faulty_job(desk, texts(NUM_ROWS), "undisturbed")).code == 0
    expected = output_table(desk.output("undisturbed")).to_pylist()
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


def test_a_row_that_kills_its_process_is_found_with_few_restarts(desk: Desk) -> None:
    ended = desk.run(job(desk, texts(NUM_ROWS, {77: KILL})))
    assert num_starts(desk) <= 1 + 5 + 2, "log2(32) + 2 restarts"
    check_all_but(desk, ended, {77: "run alone, twice, the process ended (killed, aborted, or out of memory)"})


def test_a_row_that_hangs_is_found_and_named(desk: Desk) -> None:
    errors = {"max_failed_rows": 0.5, "row_timeout_s": 2.0}
    ended = desk.run(job(desk, texts(NUM_ROWS, {5: HANG}), errors=errors))
    assert num_starts(desk) <= 1 + 5 + 2
    check_all_but(desk, ended, {5: "nothing got done within errors.row_timeout_s (2 s)"})


def test_rows_too_large_for_the_memory_are_found_in_the_same_process(desk: Desk) -> None:
    ended = desk.run(job(desk, texts(NUM_ROWS, {0: MEMORY, 149: MEMORY})))
    assert num_starts(desk) == 1
    check_all_but(desk, ended, dict.fromkeys((0, 149), "the engine raised MemoryError"))


def test_an_engine_that_dies_of_a_row_is_started_anew(desk: Desk) -> None:
    ended = desk.run(job(desk, texts(NUM_ROWS, {149: DEAD})))
    assert num_starts(desk) <= 1 + 5 + 2
    check_all_but(desk, ended, {149: "the engine stopped"})


def test_where_every_row_kills_its_process_the_run_ends_and_says_so(desk: Desk) -> None:
    ended = desk.run(job(desk, texts(1, {0: KILL}).take([0] * 3), errors={"max_deadly_rows": 0}))
    assert ended.code == 1
    assert "1 rows each ended the replica that ran them, more than errors.max_deadly_rows (0) allows" in ended.stderr
    assert json.loads((desk.output() / "_gptj_batch" / "run.json").read_text())["exit_code"] == 1
