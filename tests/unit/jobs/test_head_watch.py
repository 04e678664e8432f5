import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.head_watch import answers, head_watched

RUN = """
import sys, time
from pathlib import Path
from jobs.head_watch import head_watched
with head_watched(sys.argv[1], Path(sys.argv[2]).write_text, patience_s=0.4):
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


def test_a_process_whose_head_is_gone_says_so_and_ends(head: socket.socket, tmp_path: Path) -> None:
    where, note = address(head), tmp_path / "note"
    process = subprocess.Popen([sys.executable, "-c", RUN, where, str(note)], stderr=subprocess.PIPE, text=True)
    time.sleep(1.0)
    assert process.poll() is None
    head.close()
    _, said = process.communicate(timeout=15)
    assert process.returncode == 1
    assert f"the head of the Ray cluster ({where}) has not answered" in said and "run the same command again" in said
    assert note.read_text() in said


def test_what_ends_in_time_is_left_alone(head: socket.socket) -> None:
    def never(message: str) -> None:
        raise AssertionError(message)

    with head_watched(address(head), never, patience_s=0.2):
        head.close()
    time.sleep(0.6)
