import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cluster_watch import answers, cluster_watched

RUN = """
import sys, time
from pathlib import Path
from jobs.cluster_watch import cluster_watched
with cluster_watched(sys.argv[1], int(sys.argv[3]), 0.4, Path(sys.argv[2]).write_text):
    print("watched", flush=True)
    time.sleep(20)
"""


@pytest.fixture
def head() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def address(head: socket.socket) -> str:
    return f"127.0.0.1:{head.getsockname()[1]}"


def test_who_listens_answers_and_who_is_gone_does_not(head: socket.socket) -> None:
    where = address(head)
    assert answers(where)
    head.close()
    assert not answers(where)
    assert answers("no port to knock at")


@pytest.fixture
def raylet() -> Iterator["subprocess.Popen[bytes]"]:
    """Any process: the watch asks the system whether it has ended."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def start(head: socket.socket, raylet: "subprocess.Popen[bytes]", note: Path) -> "subprocess.Popen[str]":
    """Start a process that watches, and is in the midst of it when this returns."""
    command = [sys.executable, "-c", RUN, address(head), str(note), str(raylet.pid)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "watched\n"
    time.sleep(1.0)
    assert process.poll() is None
    return process


@pytest.mark.parametrize("lost", ["head", "raylet"])
def test_a_process_whose_head_or_raylet_is_gone_says_so_and_ends(
    head: socket.socket, raylet: "subprocess.Popen[bytes]", tmp_path: Path, lost: str
) -> None:
    where, note = address(head), tmp_path / "note"
    process = start(head, raylet, note)
    if lost == "head":
        head.close()
        message = f"the head of the Ray cluster ({where}) has not answered"
    else:
        raylet.kill()
        message = f"raylet on this machine (process {raylet.pid}) has ended"
    _, said = process.communicate(timeout=15)
    assert process.returncode == 1
    assert message in said and "run the same command again" in said
    assert note.read_text() in said


def test_what_ends_in_time_is_left_alone(head: socket.socket, raylet: "subprocess.Popen[bytes]") -> None:
    def never(message: str) -> None:
        raise AssertionError(message)

    with cluster_watched(address(head), raylet.pid, 0.2, never):
        pass
    head.close()
    raylet.kill()
    time.sleep(0.6)
