import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pipelines.cluster import close_connection, set_environment


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that has no settings of Ray's and has not imported it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.delitem(sys.modules, "ray", raising=False)
        before = dict(os.environ)
        yield patch
        for name in set(os.environ) - set(before):
            del os.environ[name]


def test_a_ray_of_ones_own_wants_a_token_that_nobody_else_knows(fresh: pytest.MonkeyPatch) -> None:
    tokens = set()
    for _ in range(2):
        fresh.delenv("RAY_AUTH_MODE", raising=False)
        fresh.delenv("RAY_AUTH_TOKEN", raising=False)
        set_environment("local")
        assert os.environ["RAY_AUTH_MODE"] == "token"
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2 and all(len(token) == 64 for token in tokens)


def test_a_cluster_of_others_is_spoken_to_as_they_say(fresh: pytest.MonkeyPatch) -> None:
    set_environment("10.0.0.1:6379")
    assert "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ


def test_what_the_user_has_set_stays(fresh: pytest.MonkeyPatch) -> None:
    mine = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "1", "RAY_BACKEND_LOG_LEVEL": "debug"}
    for name, value in mine.items():
        fresh.setenv(name, value)
    set_environment("local")
    assert {name: os.environ[name] for name in mine} == mine
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_nothing_is_sent_about_its_use(fresh: pytest.MonkeyPatch) -> None:
    set_environment("local")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_ray_is_left_when_ray_datas_threads_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    code = "def wait(inner, seconds):\n    inner(seconds)\n"
    threads = []
    for module, seconds in (("ray.data._internal.executor", 0.5), ("ray.database", 60.0)):
        names = {"__name__": module}
        exec(code, names)
        threads.append(threading.Thread(target=names["wait"], args=(time.sleep, seconds), daemon=True))
        threads[-1].start()
    alive: list[bool] = []
    monkeypatch.setattr(ray, "shutdown", lambda: alive.extend(thread.is_alive() for thread in threads))
    close_connection()
    assert alive == [False, True]
