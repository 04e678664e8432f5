"""Machines that go away in the middle of a run: nodes by SIGKILL of their raylets, the driver's too, and the head."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from integration.clusters import RunningCluster, add_node, running_cluster
from integration.desk import Desk
from integration.faulty import faulty_job, run_while, texts, undisturbed_rows
from integration.running import environment, outcome, output_table, run_report, start_command
from integration.tiny_model import TinyModel
from jobs import waiting
from jobs.soak import kill_one
from pipelines.progress import Progress

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow, pytest.mark.extended]

NUM_ROWS = 320
NODE = {"num_cpus": 1, "num_gpus": 1}


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[RunningCluster]:
    """A head, and two nodes that say that they have a GPU each."""
    with running_cluster(NODE, NODE, notices_losses=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected(new_desk: Callable[[str], Desk]) -> list[dict[str, Any]]:
    return undisturbed_rows(new_desk("undisturbed"), NUM_ROWS)


def kill_node(cluster: RunningCluster, place: int) -> None:
    """Kill a node's raylet, and with it all that runs there."""
    node = cluster.nodes.worker_nodes  # a set
    raylet = sorted(node, key=lambda one: str(one.node_id))[place]
    cluster.nodes.remove_node(raylet, allow_graceful=False)


def on_gpus(desk: Desk, request_s: float = 0.02) -> Path:
    return faulty_job(
        desk, texts(NUM_ROWS), faults={"request_s": request_s}, replicas={"cpus_each": 0.5, "gpus_each": 1}
    )


def test_a_node_that_is_lost_costs_no_row(
    tmp_path: Path, tiny: TinyModel, three_nodes: RunningCluster, expected: list[dict[str, Any]]
) -> None:
    desk = Desk(tmp_path, tiny, three_nodes)
    ended = run_while(desk, on_gpus(desk), 2, lambda: kill_node(three_nodes, 0))
    assert ended.code == 0, ended.stderr
    assert output_table(desk.output()).to_pylist() == expected
    assert run_report(desk.output())["rows_this_run"] == NUM_ROWS, "in the same run"


def test_a_run_whose_last_worker_is_lost_waits_for_a_new_one_and_says_so(
    tmp_path: Path,
    tiny: TinyModel,
    three_nodes: RunningCluster,
    expected: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "QUIET_S", 3.0)
    said, say = threading.Event(), Progress.say

    def say_and_note(progress: Progress, message: str) -> None:
        say(progress, message)
        if message.startswith("waiting"):
            said.set()

    monkeypatch.setattr(Progress, "say", say_and_note)

    def replace() -> None:
        while three_nodes.nodes.worker_nodes:
            kill_node(three_nodes, 0)
        assert said.wait(120)
        add_node(three_nodes, NODE)

    desk = Desk(tmp_path, tiny, three_nodes)
    # Slow: a replica must have much to do when it is killed, or what is left needs none.
    ended = run_while(desk, on_gpus(desk, request_s=0.5), 2, replace)
    assert ended.code == 0, ended.stderr
    assert "waiting: no machine of the cluster has room for a replica (1 GPUs and 0.5 CPUs)" in ended.stderr
    assert output_table(desk.output()).to_pylist() == expected


@pytest.mark.parametrize(
    ("victim", "message"), [("head", "the head of the Ray cluster"), ("raylet", "Ray's raylet on this machine")]
)
def test_a_run_whose_head_or_own_raylet_is_killed_says_so_and_another_cluster_goes_on(
    desk: Desk, expected: list[dict[str, Any]], victim: str, message: str
) -> None:
    job = faulty_job(desk, texts(NUM_ROWS), faults={"request_s": 0.1})
    (desk.folder / "home").mkdir()
    env = environment(desk.folder / "home")
    process = start_command(["run", str(job)], env, desk.folder)
    until = time.monotonic() + 240
    units = desk.output() / "_gptj_batch" / "units"
    while not list(units.glob("unit-*")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.05)
    started = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert kill_one(process.pid, victim, random.Random(0))
    killed = time.monotonic()
    lost = outcome(process, timeout_s=120)
    assert lost.code == 1 and time.monotonic() - killed < 30
    assert message in lost.stderr and "run the same command again" in lost.stderr
    assert message in run_report(desk.output())["reason"]
    assert not (desk.output() / "_SUCCESS").exists()
    ended = desk.run(job)
    assert ended.code == 0, ended.stderr
    assert 0 < run_report(desk.output())["rows_this_run"] < NUM_ROWS
    assert output_table(desk.output()).to_pylist() == expected
    for pid in filter(psutil.pid_exists, started):  # Ray ends its processes without a head, some of them late
        os.kill(pid, 9)
