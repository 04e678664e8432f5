"""`gptj-batch retry`: failed rows are done again, in place."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs.retry
from gptj_batch.errors import OutputError
from integration.desk import GENERATE, Desk
from integration.faulty import KILL, MEMORY, faulty_model, texts
from integration.running import Outcome, output_table, run_report
from jobs.cli import main

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

NUM_ROWS = 150
BAD = {3: KILL, 64: MEMORY, 149: MEMORY}
SAMPLED = {**GENERATE, "temperature": 1.0, "seed": 3}


def retry(output: Path, *arguments: str) -> Outcome:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = main(["retry", str(output), *arguments])
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module")
def made(new_desk: Callable[[str], Desk]) -> Desk:
    """An output of two files with three failed rows, and `good`, of the same without trouble."""
    desk = new_desk("retry")
    faulty_model(desk.folder / "model", desk.tiny, while_file=str(desk.folder / "trouble"))
    source = desk.folder / "input"
    source.mkdir()
    kinds = [["odd", "even"][row % 2] for row in range(NUM_ROWS)]
    table = texts(NUM_ROWS, BAD).append_column("kind", pa.array(kinds))
    pq.write_table(table.slice(0, 70), source / "a.parquet")
    pq.write_table(table.slice(70), source / "b.parquet")
    assert desk.run(job(desk, desk, "good")).code == 0
    (desk.folder / "trouble").touch()
    ended = desk.run(job(desk, desk))
    assert ended.code == 3, ended.stderr
    assert run_report(desk.output())["failed"] == 3
    return desk


def job(desk: Desk, made: Desk, name: str = "output") -> Path:
    settings: dict[str, Any] = {"model": {"path": str(made.folder / "model")}, "backend": {"kind": "fake"}}
    return desk.job(made.folder / "input", SAMPLED, name, **settings, errors={"max_failed_rows": 0})


@pytest.fixture
def trouble(made: Desk) -> Path:
    """The file that makes rows fail as long as it is there."""
    (made.folder / "trouble").touch()
    return made.folder / "trouble"


@pytest.fixture
def failed(made: Desk, trouble: Path, tmp_path: Path) -> Desk:
    """A copy of the output with failed rows, and its job."""
    desk = Desk(tmp_path, made.tiny, made.cluster)
    shutil.copytree(made.output(), desk.output())
    job(desk, made)
    return desk


@pytest.fixture
def expected(made: Desk) -> list[dict[str, Any]]:
    """The rows of an output that nothing went wrong with."""
    rows: list[dict[str, Any]] = output_table(made.output("good")).to_pylist()
    return rows


def success(desk: Desk) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((desk.output() / "_SUCCESS").read_text())
    return facts


def test_failed_rows_are_done_again_in_place(failed: Desk, trouble: Path, expected: list[dict[str, Any]]) -> None:
    before, names = success(failed), sorted(path.name for path in failed.output().iterdir())
    trouble.unlink()
    ended = retry(failed.output())
    assert ended.code == 0, ended.stderr
    assert "doing 3 failed rows" in ended.stderr and "150 rows: 150 done, 0 failed; 3 in this run" in ended.stdout
    assert output_table(failed.output()).to_pylist() == expected, "sampled by the names that the rows had"
    report = run_report(failed.output())
    assert (report["rows"], report["done"], report["failed"], report["errors"]) == (150, 150, 0, {})
    assert (report["exit_code"], report["reason"], report["output"]) == (0, "complete", str(failed.output()))
    assert success(failed) == before
    assert sorted(path.name for path in failed.output().iterdir()) == names
    private = {path.name for path in (failed.output() / "_gptj_batch").iterdir()}
    assert private == {"config.yaml", "run.json", "report.html", "plan.json"}
    again = retry(failed.output())
    assert again.code == 0 and "Nothing to do: no row of" in again.stderr
    # and the job itself finds a complete output
    assert "Nothing to do" in failed.run(failed.folder / "output.yaml").stderr


@pytest.mark.extended
def test_rows_that_fail_again_keep_an_error_and_the_exit_code(failed: Desk) -> None:
    before = output_table(failed.output()).to_pylist()
    ended = retry(failed.output())
    assert ended.code == 3
    assert output_table(failed.output()).to_pylist() == before
    assert run_report(failed.output())["failed"] == 3


def test_a_retry_that_is_cut_off_before_its_parts_goes_on(
    failed: Desk, trouble: Path, expected: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: Any) -> None:
        raise OutputError("as if the machine had gone")

    before = output_table(failed.output()).to_pylist()
    trouble.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(jobs.retry.RetryFolder, "put_back", crash)
        assert retry(failed.output()).code == 1
    assert output_table(failed.output()).to_pylist() == before
    ended = retry(failed.output())
    assert ended.code == 0, ended.stderr
    assert output_table(failed.output()).to_pylist() == expected


def test_a_retry_needs_a_finished_output_of_ones_own_and_the_same_task(failed: Desk, tmp_path: Path) -> None:
    other = retry(failed.output(), "task.seed=4")
    assert other.code == 2 and "task.seed: 3 -> 4" in other.stderr
    (failed.output() / "_SUCCESS").unlink()
    unfinished = retry(failed.output())
    assert unfinished.code == 2 and "has no _SUCCESS: its run has not finished" in unfinished.stderr
    foreign = retry(tmp_path)
    assert foreign.code == 2 and "is not an output of gptj-batch" in foreign.stderr


def lines(output: Path) -> list[dict[str, Any]]:
    """Return the rows of JSON lines in partitions, by their number."""
    rows = [
        {**json.loads(line), "kind": part.parent.name.partition("=")[2]}
        for part in output.glob("kind=*/part-*.jsonl")
        for line in part.read_text("utf-8").splitlines()
    ]
    return sorted(rows, key=lambda row: int(row["id"]))


@pytest.mark.extended
def test_lines_in_partitions_are_done_again_from_the_input(
    failed: Desk, trouble: Path, expected: list[dict[str, Any]]
) -> None:
    output = failed.output("lines")
    form = (f"output.path={output}", "output.format=jsonl", "output.partition_by=[kind]")
    assert failed.run(failed.folder / "output.yaml", *form).code == 3
    assert [row["id"] for row in lines(output) if row["error"] is not None] == list(BAD)
    trouble.unlink()
    ended = retry(output)
    assert ended.code == 0, ended.stderr
    assert "doing 3 failed rows" in ended.stderr and "150 rows: 150 done, 0 failed; 3 in this run" in ended.stdout
    assert lines(output) == expected
    assert run_report(output)["failed"] == 0


@pytest.mark.extended
def test_partitions_by_what_the_task_adds_are_refused(failed: Desk) -> None:
    output = failed.output("moving")
    form = (f"output.path={output}", "output.partition_by=[finish_reason]")
    assert failed.run(failed.folder / "output.yaml", *form).code == 3
    refused = retry(output)
    assert refused.code == 2 and 'has "finish_reason", which the task adds' in refused.stderr
