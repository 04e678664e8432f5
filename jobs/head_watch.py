"""Watch over the cluster's head: a run whose head is gone ends with a message, instead of waiting, or of being ended.

Ray's own client gives up after 60 seconds without the head's server, from native code: no handler runs then, and
nothing is written down. So a thread knocks at that server's port, and when nobody has answered for long, it ends the
process itself.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# Below Ray's own 60 seconds; a head that is started again within this time (KubeRay with Redis) ends no run.
PATIENCE_S = 45.0
_KNOCK_EVERY_S, _MIN_MISSED = 2.0, 3
EXIT_CODE = 1
LOST = (
    "the head of the Ray cluster ({address}) has not answered for {seconds:.0f} s: it is gone, or cannot be reached. "
    "Finished units are kept; run the same command again, on a cluster that is up, to go on"
)


@contextmanager
def head_watched(address: str, on_loss: Callable[[str], None], patience_s: float | None = None) -> Iterator[None]:
    """Look after the head at `address` (host:port) while what is inside is done.

    on_loss: takes what is to be said, and writes it down; the process ends when it returns, with exit code 1
    """
    over = threading.Event()
    patience = PATIENCE_S if patience_s is None else patience_s

    def watch() -> None:
        last_answer, num_missed = time.monotonic(), 0
        while not over.wait(min(_KNOCK_EVERY_S, patience / 4)):
            if answers(address):
                last_answer, num_missed = time.monotonic(), 0
                continue
            num_missed += 1  # time alone also passes while this process is stopped
            if num_missed >= _MIN_MISSED and time.monotonic() - last_answer > patience:
                break
        if not over.is_set():
            _end(LOST.format(address=address, seconds=patience), on_loss)

    threading.Thread(target=watch, name="gptj-batch-head-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


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
    """End the process at once: what hangs on the head would hang at an ordinary end, too."""
    with suppress(Exception):
        on_loss(message)
    with suppress(OSError, ValueError):
        print(f"gptj-batch: {message}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
