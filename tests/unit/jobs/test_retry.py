"""Retries of a run whose dataset went on since, with the stages called one after the other where Ray Data would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from whole_runs import Spine, job

import jobs.retry
from gptj_batch.errors import OutputError, OutputInUseError
from gptj_batch.records.lease import take_lease
from jobs.retry import retry
from jobs.run import run_job
from pipelines.config import Job


def write(folder: Path, name: str, texts: list[str | None]) -> None:
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / "in" / name)


def rows(name: str, number: int, *more: str | None) -> list[str | None]:
    return [*(f"{name} {row}" for row in range(number)), *more]


@pytest.fixture
def scheduled(tmp_path: Path, model_folder: Path, spine: Spine) -> Job:
    return job(tmp_path, model_folder, input={"incremental": True}, output={"incremental": "partition"})


@pytest.fixture
def first(tmp_path: Path, scheduled: Job) -> Path:
    """The partition of a run over the files a, b and c, in each of which a row failed."""
    for name in ("a", "b", "c"):
        write(tmp_path, f"{name}.parquet", rows(name, 9, None))
    write(tmp_path, "a.parquet", rows("a", 39, None))
    assert run_job(scheduled) == 3
    (partition,) = (tmp_path / "out").glob("run=*")
    return partition


def report(output: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((output / "_gptj_batch" / "run.json").read_text())
    return facts


def texts(output: Path) -> list[str | None]:
    found: list[str | None] = ds.dataset(output, format="parquet").to_table().column("text").to_pylist()
    return sorted(found, key=str)


def test_the_report_counts_the_rows_that_are_there(tmp_path: Path, scheduled: Job, first: Path) -> None:
    write(tmp_path, "b.parquet", rows("new b", 5))
    run_job(scheduled)
    assert retry(str(first)) == 3
    said = report(first)
    assert (said["rows"], said["done"], said["failed"]) == (50, 48, 2)
    assert said["rows_this_run"] == 2


def test_the_dataset_says_what_was_made_of_its_last_run(tmp_path: Path, scheduled: Job, first: Path) -> None:
    dataset = tmp_path / "out"
    before = report(dataset)
    assert retry(str(first)) == 3
    assert report(dataset) == report(first) != before, "the rows of the retry alone are other ones"
    write(tmp_path, "b.parquet", rows("new b", 5))
    run_job(scheduled)
    of_second = report(dataset)
    assert retry(str(first)) == 3
    assert report(dataset) == of_second != report(first)


def test_where_all_that_failed_was_replaced_there_is_nothing_to_do_and_nothing_failed(
    tmp_path: Path, scheduled: Job, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (
        write(tmp_path, "a.parquet", rows("new a", 5)),
        write(tmp_path, "b.parquet", rows("new b", 5)),
        write(tmp_path, "c.parquet", rows("c", 9)),
    )
    run_job(scheduled)
    assert retry(str(first)) == 0
    assert "Nothing to do" in capsys.readouterr().err
    assert (report(first)["rows"], report(first)["failed"], report(first)["exit_code"]) == (0, 0, 0)


def test_an_interrupted_retry_ends_though_a_part_was_replaced_and_brings_it_not_back(
    tmp_path: Path, scheduled: Job, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise OutputError("as if the machine had gone")

    with monkeypatch.context() as patch, pytest.raises(OutputError):
        patch.setattr(jobs.retry.RetryFolder, "put_back", crash)
        retry(str(first))
    write(tmp_path, "b.parquet", rows("new b", 5))
    run_job(scheduled)
    assert retry(str(first)) == 3
    assert report(first)["rows"] == 50
    expected = [*rows("a", 39, None), *rows("new b", 5), *rows("c", 9, None)]
    assert texts(tmp_path / "out") == sorted(expected, key=str)
    assert not (first / "_gptj_batch" / "retry").exists()


def test_a_retry_and_a_run_of_the_dataset_keep_each_other_out(
    tmp_path: Path, scheduled: Job, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with take_lease(tmp_path / "out"), pytest.raises(OutputInUseError):
        retry(str(first))
    complete: Callable[..., Any] = jobs.retry.complete
    was_kept_out: list[bool] = []

    def meanwhile(*arguments: Any) -> Any:
        with pytest.raises(OutputInUseError):
            run_job(scheduled)
        was_kept_out.append(True)
        return complete(*arguments)

    monkeypatch.setattr(jobs.retry, "complete", meanwhile)
    assert retry(str(first)) == 3 and was_kept_out == [True]
