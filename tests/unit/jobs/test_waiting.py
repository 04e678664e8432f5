import io
import time
from collections.abc import Callable

import pytest

from jobs import waiting
from jobs.waiting import waiting_told
from pipelines.progress import Progress

UNIT = {"rows": 1, "failed": 0, "truncated": 0, "duplicates": 0, "prompt_tokens": 1, "generated_tokens": 1}
MESSAGE = "waiting: no machine of the cluster has room for a replica (1 GPUs and 2 CPUs)"


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
    with waiting_told(progress, lambda: False, "1 GPUs and 2 CPUs"):
        assert wait_for(lambda: MESSAGE in said.getvalue())
        time.sleep(0.5)
        assert said.getvalue().count(MESSAGE) == 1
        progress.add(UNIT)
        assert wait_for(lambda: said.getvalue().count(MESSAGE) == 2)


def test_a_run_that_is_only_slow_is_not_disturbed() -> None:
    said, num_looks = io.StringIO(), 0

    def has_room() -> bool:
        nonlocal num_looks
        num_looks += 1
        return True

    with waiting_told(Progress(10, said), has_room, "1 GPUs and 2 CPUs"):
        assert wait_for(lambda: num_looks > 2)
    assert not said.getvalue()


def test_the_cluster_is_not_asked_after_the_end() -> None:
    looks: list[float] = []

    def has_room() -> bool:
        looks.append(time.monotonic())
        return True

    with waiting_told(Progress(10, io.StringIO()), has_room, "1 GPUs and 2 CPUs"):
        assert wait_for(lambda: bool(looks))
    number = len(looks)
    time.sleep(0.4)
    assert len(looks) == number, "Ray would start a cluster to answer"


def test_a_cluster_that_cannot_be_asked_is_asked_again() -> None:
    said, answers = io.StringIO(), iter([ConnectionError, ConnectionError])

    def has_room() -> bool:
        for error in answers:
            raise error
        return False

    with waiting_told(Progress(10, said), has_room, "1 GPUs and 2 CPUs"):
        assert wait_for(lambda: MESSAGE in said.getvalue())
