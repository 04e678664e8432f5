import io
import time
from collections.abc import Callable

import pytest

from gptj_batch.stages.resources import ReplicaPlan
from jobs import waiting
from jobs.waiting import waiting_told, why_waiting
from pipelines.progress import Progress

UNIT = {"rows": 1, "failed": 0, "truncated": 0, "duplicates": 0, "prompt_tokens": 1, "generated_tokens": 1}
MESSAGE = "waiting: for something"
REPLICAS = ReplicaPlan(min_replicas=1, max_replicas=1, initial_replicas=1, num_gpus=1.0, num_cpus=2.0, num_threads=2)
NODES = [{"CPU": 8.0, "GPU": 2.0}]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "QUIET_S", 0.2)


def wait_for(is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not is_so() and time.monotonic() < until:
        time.sleep(0.01)
    return is_so()


def test_a_run_that_has_no_machine_says_so_once_each_time() -> None:
    said = io.StringIO()
    progress = Progress(10, said)
    with waiting_told(progress, lambda has_begun: MESSAGE):
        assert wait_for(lambda: MESSAGE in said.getvalue())
        time.sleep(0.5)
        assert said.getvalue().count(MESSAGE) == 1
        progress.add(UNIT)
        assert wait_for(lambda: said.getvalue().count(MESSAGE) == 2)


def test_a_run_that_is_only_slow_is_not_disturbed() -> None:
    said, looks = io.StringIO(), list[bool]()
    progress = Progress(10, said)
    with waiting_told(progress, looks.append):
        assert wait_for(lambda: len(looks) > 2)
        assert not any(looks) and not said.getvalue()
        progress.add(UNIT)
        assert wait_for(lambda: any(looks)), "it is not told that rows have been done"


def test_the_cluster_is_not_asked_after_the_end() -> None:
    looks: list[bool] = []
    with waiting_told(Progress(10, io.StringIO()), looks.append):
        assert wait_for(lambda: bool(looks))
    number = len(looks)
    time.sleep(0.4)
    assert len(looks) == number, "Ray would start a cluster to answer"


def test_a_cluster_that_cannot_be_asked_is_asked_again() -> None:
    said, answers = io.StringIO(), iter([ConnectionError, ConnectionError])

    def why(has_begun: bool) -> str:
        for error in answers:
            raise error
        return MESSAGE

    with waiting_told(Progress(10, said), why):
        assert wait_for(lambda: MESSAGE in said.getvalue())


def test_a_cluster_without_a_machine_for_a_replica_is_a_reason_at_any_time() -> None:
    for has_begun in (False, True):
        reason = why_waiting(REPLICAS, [{"CPU": 8.0}], {"CPU": 8.0}, has_begun)
        assert reason and reason.startswith(
            "waiting: no machine of the cluster has room for a replica (1 GPUs and 2 CPUs)"
        )


def test_what_others_hold_is_a_reason_until_the_first_row_is_done() -> None:
    for free in ({"CPU": 5.0}, {"CPU": 1.5, "GPU": 2.0}):
        reason = why_waiting(REPLICAS, NODES, free, False)
        assert reason and "others hold what a replica takes (1 GPUs and 2 CPUs;" in reason
        assert why_waiting(REPLICAS, NODES, free, True) is None
    assert why_waiting(REPLICAS, NODES, {"CPU": 2.0, "GPU": 1.0}, False) is None
