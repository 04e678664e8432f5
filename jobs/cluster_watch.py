"""Watch over what a driver stands on, the cluster's head and its own raylet: without one, the run ends with a message.

Ray's own client gives up after 60 seconds without the head's server, from native code: no handler runs then, and
nothing is written down. So a thread knocks at that server's port, and when nobody has answered for long, it ends the
process itself. A raylet that dies is known to the system at once, and no driver outlives it; Ray says so in its own
words, and not that the run can go on.
"""

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# Below Ray's own 60 seconds; a head that is started again within this time (KubeRay with Redis) ends no run.
PATIENCE_S = 45.0
OWN_PATIENCE_S = 5.0  # a head that the command has started for itself is started again by nobody
_KNOCK_EVERY_S, _MIN_MISSED = 2.0, 3
EXIT_CODE = 1
HEAD_LOST = (
    "the head of the Ray cluster ({address}) has not answered for {seconds:.0f} s: it is gone, or cannot be reached. "
    "Finished units are kept; run the same command again, on a cluster that is up, to go on"
)
RAYLET_LOST = (
    "Ray's raylet on this machine (process {pid}) has ended: killed, or out of memory; the run ends with it. "
    "Finished units are kept; run the same command again to go on"
)


@contextmanager
def cluster_watched(head: str, raylet: int | None, patience_s: float, on_loss: Callable[[str], None]) -> Iterator[None]:
    """Look after the head at `head` (host:port) and the process `raylet`, where that is known, during what is inside.

    patience_s: for how long the head may be silent.
    on_loss: takes what is to be said, and writes it down; the process ends when it returns, with exit code 1
    """
    over = threading.Event()

    def watch() -> None:
        with _end_of(raylet) as raylet_ends:
            lost = _wait_for_loss(head, raylet, raylet_ends, over, patience_s)
        if lost and not over.is_set():
            _end(lost, on_loss)

    threading.Thread(target=watch, name="gptj-batch-cluster-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _wait_for_loss(
    head: str, raylet: int | None, raylet_ends: Callable[[float], bool], over: threading.Event, patience_s: float
) -> str:
    """Return what is to be said of what was lost; nothing where `over` came first."""
    last_answer, num_missed = time.monotonic(), 0
    while not over.is_set():
        if raylet_ends(min(_KNOCK_EVERY_S, patience_s / 4)):
            return RAYLET_LOST.format(pid=raylet)
        if answers(head):
            last_answer, num_missed = time.monotonic(), 0
            continue
        num_missed += 1  # time alone also passes while this process is stopped
        if num_missed >= _MIN_MISSED and time.monotonic() - last_answer > patience_s:
            return HEAD_LOST.format(address=head, seconds=patience_s)
    return ""


@contextmanager
def _end_of(process: int | None) -> Iterator[Callable[[float], bool]]:
    """Yield what waits for so many seconds, or until a process ends, and tells whether it has; on Linux only."""
    poll, descriptor = select.poll(), None
    if process is not None and sys.platform == "linux":
        with suppress(OSError):  # an old kernel, a sandbox: Ray's own words have to do
            descriptor = os.pidfd_open(process)
            poll.register(descriptor, select.POLLIN)
    try:
        yield lambda seconds: bool(poll.poll(seconds * 1000))
    finally:
        if descriptor is not None:
            os.close(descriptor)


def answers(address: str) -> bool:
    """Tell whether somebody listens at host:port; True where that cannot be told."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_EVERY_S).close()
    except OSError:
        return False
    return True


def _end(message: str, on_loss: Callable[[str], None]) -> None:
    """End the process at once: what hangs on the cluster would hang at an ordinary end, too."""
    with suppress(Exception):
        on_loss(message)
    with suppress(OSError, ValueError):
        print(f"gptj-batch: {message}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
