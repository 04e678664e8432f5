"""Incremental runs on a cluster: what a scheduler starts night after night, and what readers find meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from gptj_batch.records.lease import take_lease
from integration.desk import Desk
from integration.running import environment, run_report
from jobs.cli import main
from pipelines.ledger import read_ledger

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
CLASSIFY = {"kind": "classify", "prompt": "{{ text }}\nTopic:", "labels": ["World", "Sports"]}


def write(desk: Desk, name: str, start: int, stop: int) -> Path:
    texts = [f"row {row} of the news" for row in range(start, stop)]
    return desk.write_rows({"id": range(start, stop), "text": texts}, name) / name


def nightly(desk: Desk, mode: str = "partition", **blocks: Any) -> Path:
    blocks = {"backend": {"kind": "fake"}, "drift": {"min_rows": 20}, **blocks}
    output = {"incremental": mode}
    return desk.job(desk.folder / "input", CLASSIFY, mode, input={"incremental": True}, output=output, **blocks)


def score_scheduled(desk: Desk, job: Path, *arguments: str, **settings: str) -> "subprocess.Popen[str]":
    """Start what schedulers start, as they do."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "score_scheduled.py"), str(job), *arguments],
        env=environment(desk.folder, **settings),
        cwd=desk.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module", params=["partition", pytest.param("append", marks=pytest.mark.without_ray)])
def three_nights(request: pytest.FixtureRequest, new_desk: Callable[[str], Desk]) -> tuple[Desk, str]:
    """Files a, b; then c; then b changed."""
    desk, mode = new_desk("nights"), str(request.param)
    write(desk, "a.parquet", 0, 40), write(desk, "b.parquet", 40, 70)
    for name, start, stop in ((None, 0, 0), ("c.parquet", 100, 125), ("b.parquet", 40, 65)):
        if name is not None:
            write(desk, name, start, stop)
        ended = desk.run(nightly(desk, mode))
        assert ended.code == 0, ended.stderr
    return desk, mode


IDS = [*range(65), *range(100, 125)]


def test_every_live_row_is_there_once_for_every_reader(three_nights: tuple[Desk, str]) -> None:
    desk, mode = three_nights
    output = desk.output(mode)
    assert [len(entry.files) for entry in read_ledger(output).entries] == [2, 1, 1]
    glob = f"{output}/run=*/part-*.parquet" if mode == "partition" else f"{output}/part-*.parquet"
    table = ds.dataset(output, format="parquet", partitioning="hive").to_table()
    assert sorted(table.column("id").to_pylist()) == IDS
    frame = pd.read_parquet(output)
    assert sorted(frame["id"]) == IDS and set(frame["label"]) <= {"World", "Sports"}
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    assert sorted(polars.scan_parquet(glob, hive_partitioning=True).collect()["id"].to_list()) == IDS
    with duckdb.connect() as connection:
        query = f"select * from read_parquet('{glob}', hive_partitioning = true)"
        found = connection.sql(query).to_arrow_table()
    assert sorted(found.column("id").to_pylist()) == IDS
    if mode == "partition":
        names = {entry.run for entry in read_ledger(output).entries}
        for column in (table.column("run").to_pylist(), found.column("run").to_pylist(), frame["run"].tolist()):
            assert {str(run) for run in column} == names


def test_rows_are_those_of_a_run_over_everything(three_nights: tuple[Desk, str]) -> None:
    desk, mode = three_nights
    whole = desk.job(desk.folder / "input", CLASSIFY, "whole", backend={"kind": "fake"})
    assert desk.run(whole).code == 0
    expected = pq.read_table(desk.output("whole")).sort_by("id")
    found = ds.dataset(desk.output(mode), format="parquet", partitioning="hive").to_table().sort_by("id")
    assert found.select(expected.column_names).to_pylist() == expected.to_pylist()


def test_the_report_and_the_drift_of_the_last_night_are_there(three_nights: tuple[Desk, str]) -> None:
    desk, mode = three_nights
    report = run_report(desk.output(mode))
    last = read_ledger(desk.output(mode)).entries[-1]
    assert (report["rows"], report["incremental"]["run"]) == (25, last.run)
    drift = json.loads((desk.output(mode) / "_gptj_batch" / "drift.json").read_text())
    assert drift["reference"] == read_ledger(desk.output(mode)).entries[-2].run and drift["reason"] is None
    assert "Drift from run" in (desk.output(mode) / "_gptj_batch" / "report.html").read_text()


def test_a_nights_partition_is_an_output_of_its_own(three_nights: tuple[Desk, str]) -> None:
    desk, mode = three_nights
    if mode == "append":
        pytest.skip("its parts lie among all others")
    second = desk.output(mode) / f"run={read_ledger(desk.output(mode)).entries[1].run}"
    assert main(["verify", str(second)]) == 0
    assert main(["retry", str(second)]) == 0, "no row failed"


def test_nothing_new_ends_within_seconds_and_starts_no_ray(three_nights: tuple[Desk, str]) -> None:
    desk, mode = three_nights
    started = time.monotonic()
    # At this address there is no Ray, and the model has lost what a replica would load.
    process = score_scheduled(desk, desk.folder / f"{mode}.yaml", "--address", "127.0.0.1:1")
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "Nothing to do" in stderr and "3 unchanged" in stderr and not stdout
    assert time.monotonic() - started < 60, "10 s on an idle machine; tests run on busy ones"


@pytest.fixture
def slow_model(desk: Desk) -> Path:
    """The model of a fake backend that takes its time."""
    model = desk.folder / "slow"
    shutil.copytree(desk.tiny.folder, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "fake_faults": {"request_s": 0.05}}))
    return model


@pytest.mark.extended
def test_a_killed_run_is_gone_on_with_and_readers_see_nothing_of_it_before(desk: Desk, slow_model: Path) -> None:
    write(desk, "a.parquet", 0, 20)
    job, output = nightly(desk, model={"path": str(slow_model)}), desk.output("partition")
    assert desk.run(job).code == 0
    write(desk, "b.parquet", 20, 180)
    process = score_scheduled(desk, job, "--address", desk.cluster.address, RAY_AUTH_MODE="disabled")
    runs, deadline = output / "_gptj_batch" / "runs", time.monotonic() + 200
    while not list(runs.glob("*/_gptj_batch/units/unit-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[1]
    assert len(pd.read_parquet(output)) == 20
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (begun,) = (folder.name for folder in runs.iterdir())
    write(desk, "c.parquet", 180, 190)
    ended = desk.run(job)
    assert ended.code == 0, ended.stderr
    _, second, third = read_ledger(output).entries
    assert second.run == begun and (second.rows, third.rows) == (160, 10)
    assert run_report(output / f"run={begun}")["rows_this_run"] < 160, "what it had done was not done again"
    assert sorted(pd.read_parquet(output)["id"]) == list(range(190))


def test_of_two_runs_at_once_the_second_ends_with_4(desk: Desk) -> None:
    write(desk, "a.parquet", 0, 10)
    job = nightly(desk)
    with take_lease(desk.output("partition")):
        ended = desk.run(job)
    assert ended.code == 4 and "is held by another run that is alive" in ended.stderr
    assert desk.run(job).code == 0
