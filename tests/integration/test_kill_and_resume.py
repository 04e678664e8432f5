"""Runs whose processes are killed at random moments: after a rerun nothing is lost, doubled or different."""

import os
import random
import threading
import time
from pathlib import Path

import pytest

from integration.clusters import RunningCluster, connect
from integration.running import environment, outcome, run_here, start_command
from jobs.soak import Workload, kill_one

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

IN_PROCESS_ROUNDS, DRIVER_ROUNDS = 15, 5


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory, one_node: RunningCluster) -> Workload:
    """A job and its output as nothing disturbed it."""
    workload = Workload(tmp_path_factory.mktemp("soak"), num_rows=200, request_s=0.02)
    connect(one_node)
    assert run_here(workload.job("undisturbed")).code == 0
    return workload


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    seed = int(os.environ.get("GPTJ_BATCH_SEED", random.SystemRandom().randrange(10**6)))
    print(f"GPTJ_BATCH_SEED={seed}")  # shown where the test fails
    return random.Random(seed)


def finish(workload: Workload, name: str, code: int) -> None:
    for _ in range(5):
        if code == 0:
            break
        ended = run_here(workload.job(name))
        code = ended.code
        assert code in (0, 4), ended.stderr
        time.sleep(0.2)  # 4: the killed driver is not gone yet
    assert code == 0
    assert workload.compare(name, "undisturbed").is_good


def test_replicas_and_workers_that_are_killed_lose_and_double_nothing(
    workload: Workload, draw: random.Random, one_node: RunningCluster
) -> None:
    connect(one_node)
    num_killed = 0
    for number in range(IN_PROCESS_ROUNDS):
        name, kind, moment = f"killed-{number}", draw.choice(["replica", "worker"]), draw.uniform(0.0, 2.0)
        over = threading.Event()
        killed: list[bool] = []

        def kill(kind: str = kind, moment: float = moment, over: threading.Event = over) -> None:
            over.wait(moment)
            while not over.is_set() and not killed:  # noqa: B023
                if kill_one(os.getpid(), kind, draw):
                    killed.append(True)  # noqa: B023
                time.sleep(0.02)

        killer = threading.Thread(target=kill)
        killer.start()
        ended = run_here(workload.job(name))
        over.set()
        killer.join()
        num_killed += len(killed)
        finish(workload, name, ended.code)
    assert num_killed >= IN_PROCESS_ROUNDS // 2


def test_a_driver_that_is_killed_is_gone_on_with(
    workload: Workload, draw: random.Random, one_node: RunningCluster, tmp_path: Path
) -> None:
    connect(one_node)
    for number in range(DRIVER_ROUNDS):
        name = f"driver-{number}"
        arguments = ["run", str(workload.job(name)), "--address", one_node.address]
        process = start_command(arguments, environment(tmp_path, RAY_AUTH_MODE="disabled"), tmp_path)
        units = workload.output(name) / "_gptj_batch" / "units"
        while process.poll() is None and not list((workload.output(name) / "_gptj_batch").glob("lease-*")):
            time.sleep(0.02)
        moment = time.monotonic() + draw.uniform(0.0, 6.0)
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        print(f"{name}: {len(list(units.glob('*')))} units when it was killed")
        process.kill()
        code = outcome(process).code
        finish(workload, name, code)
