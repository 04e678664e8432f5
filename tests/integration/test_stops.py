"""Runs that end before their time, and runs that meet another on their output."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.clusters import RunningCluster, connect
from integration.desk import Desk
from integration.faulty import faulty_job, texts, undisturbed_rows
from integration.running import environment, outcome, output_table, run_report, start_command

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

NUM_ROWS = 320
# A unit of 32 rows takes a while, and one replica has several of them in hand.
SLOW = {"request_s": 0.1}


def slow_job(desk: Desk, num_rows: int = NUM_ROWS, cpus_each: float = 0.5) -> Path:
    return faulty_job(desk, texts(num_rows), faults=SLOW, replicas={"cpus_each": cpus_each, "max": 1})


def start(desk: Desk, job: Path, *arguments: str) -> "subprocess.Popen[str]":
    (desk.folder / "home").mkdir(exist_ok=True)
    env = environment(desk.folder / "home", RAY_AUTH_MODE="disabled")
    return start_command(["run", str(job), "--address", desk.cluster.address, *arguments], env, desk.folder)


def leases(desk: Desk) -> list[Path]:
    return list((desk.output() / "_gptj_batch").glob("lease-*"))


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], object]) -> None:
    until = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def units(desk: Desk) -> list[Path]:
    return list((desk.output() / "_gptj_batch" / "units").glob("unit-*"))


@pytest.fixture(scope="module")
def expected(new_desk: Callable[[str], Desk]) -> list[dict[str, object]]:
    return undisturbed_rows(new_desk("undisturbed"), NUM_ROWS)


def test_a_second_run_is_refused_with_4_and_disturbs_nothing(desk: Desk, expected: list[dict[str, object]]) -> None:
    job = slow_job(desk, num_rows=96)
    process = start(desk, job)
    wait_for(process, lambda: leases(desk))
    for arguments in ([], ["output.on_exists=overwrite"]):
        second = desk.run(job, *arguments)
        assert second.code == 4
        assert (
            f"held by another run that is alive: host {os.uname().nodename}, process {process.pid}, since"
            in second.stderr
        )
    first = outcome(process)
    assert first.code == 0, first.stderr
    assert not leases(desk)
    assert output_table(desk.output()).to_pylist() == expected[:96]


def test_a_run_that_slept_while_another_took_over_writes_nothing_any_more(
    desk: Desk, expected: list[dict[str, object]]
) -> None:
    # Few units and small replicas: a run that sleeps keeps its replica and the workers that its last tasks were given,
    # and the other has to find room beside them on two CPUs.
    job = slow_job(desk, num_rows=96, cpus_each=0.25)
    process = start(desk, job)
    wait_for(process, lambda: leases(desk) and units(desk))
    process.send_signal(signal.SIGSTOP)
    for lease in leases(desk):
        os.utime(lease, (0, 0))  # as if it had slept for long
    taker = desk.run(job, "output.on_exists=overwrite")
    assert taker.code == 0, taker.stderr
    report = run_report(desk.output())
    process.send_signal(signal.SIGCONT)
    zombie = outcome(process)
    assert zombie.code == 4, zombie.stderr
    assert "the output was taken over" in zombie.stderr
    assert run_report(desk.output()) == report
    assert output_table(desk.output()).to_pylist() == expected[:96]


@pytest.mark.extended
def test_at_its_deadline_a_run_stops_with_75_and_a_rerun_goes_on(desk: Desk, expected: list[dict[str, object]]) -> None:
    job = slow_job(desk)
    stopped = desk.run(job, "--deadline", "6s")
    assert stopped.code == 75, stopped.stderr
    assert "stopped by --deadline; run the same command again to go on" in stopped.stderr
    report = run_report(desk.output())
    assert (report["exit_code"], report["reason"]) == (75, "stopped by --deadline")
    assert not (desk.output() / "_SUCCESS").exists() and not leases(desk)
    ended = desk.run(job)
    assert ended.code == 0, ended.stderr
    assert output_table(desk.output()).to_pylist() == expected


def test_gpu_hours_are_counted_where_there_are_gpus(desk: Desk, gpu_nodes: RunningCluster) -> None:
    job = slow_job(desk)
    refused = desk.run(job, "--max-gpu-hours", "1")
    assert refused.code == 2 and "this run uses no GPU" in refused.stderr
    on_gpus = Desk(desk.folder, desk.tiny, gpu_nodes)
    stopped = on_gpus.run(job, "--max-gpu-hours", "0.002", "replicas.cpus_each=0.5")
    assert stopped.code == 75, stopped.stderr
    assert run_report(desk.output())["reason"] == "stopped by --max-gpu-hours"


def test_a_stop_is_written_down_before_ray_jobs_would_kill(desk: Desk, expected: list[dict[str, object]]) -> None:
    job = slow_job(desk, num_rows=160)
    process = start(desk, job)
    wait_for(process, lambda: units(desk))
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    file = desk.output() / "_gptj_batch" / "run.json"
    wait_for(process, file.exists)
    assert time.monotonic() - sent < 3
    process.kill()  # as `ray job stop` does after three seconds
    outcome(process)
    report = run_report(desk.output())
    assert (report["exit_code"], report["reason"]) == (143, "stopped by SIGTERM")
    connect(desk.cluster)
    ended = desk.run(job)
    assert ended.code == 0, ended.stderr
    assert 0 < run_report(desk.output())["rows_this_run"] < 160
    assert output_table(desk.output()).to_pylist() == expected[:160]
