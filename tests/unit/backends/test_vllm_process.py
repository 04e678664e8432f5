import os
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from gptj_batch.backends.vllm_process import REPLICA_PID, cause_kept

WATCHING = (
    "import time; from gptj_batch.backends import vllm_process as p; {}p.end_with_replica(); print(1, flush=True); "
)
NO_PIDFD = "del p.os.pidfd_open; "


def start(code: str, replica: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, REPLICA_PID: str(replica)}, stdout=subprocess.PIPE, text=True
    )


def sleeper(arguments: Sequence[str] = ("60",)) -> "subprocess.Popen[str]":
    return subprocess.Popen(["sleep", *arguments], text=True)


@pytest.mark.parametrize("change", ["", NO_PIDFD], ids=["pidfd", "polling"])
def test_a_process_ends_when_its_replica_is_killed_and_not_before(change: str) -> None:
    replica = sleeper()
    engine = start(WATCHING.format(change) + "time.sleep(60)", replica.pid)
    assert engine.stdout is not None and engine.stdout.readline() == "1\n"
    time.sleep(0.3)
    assert engine.poll() is None
    replica.kill()
    replica.wait()
    assert engine.wait(10) == -9


def test_a_replica_that_is_gone_already_ends_it_at_once() -> None:
    replica = sleeper(("0",))
    replica.wait()
    assert start(WATCHING.format("") + "time.sleep(60)", replica.pid).wait(10) == -9


def test_a_replica_does_not_watch_itself() -> None:
    code = WATCHING.format("p.os.environ[p.REPLICA_PID] = str(p.os.getpid()); ") + "print(p.threading.active_count())"
    process = start(code, os.getpid())
    assert process.communicate(timeout=10)[0] == "1\n1\n" and process.returncode == 0


LOGGING = """
import logging
from gptj_batch.backends.vllm_process import keep_cause
keep_cause()
logger = logging.getLogger("vllm.v1.engine.core")
logger.error("no exception")
for cause in ("the first\\nof all", "the second"):
    try:
        raise ValueError(cause)
    except ValueError:
        logger.exception("EngineCore failed to start.")
"""


def test_what_first_goes_wrong_in_a_process_that_was_started_meanwhile_is_kept() -> None:
    with cause_kept() as cause:
        assert cause() == ""
        subprocess.run([sys.executable, "-c", LOGGING], check=True, stderr=subprocess.DEVNULL)
        assert cause() == "ValueError: the first of all"
    # Once all runs nobody asks for it, and nothing is written.
    assert subprocess.run([sys.executable, "-c", LOGGING], check=True, capture_output=True).returncode == 0
