"""Say that a run waits for a machine: Ray waits without a word until there is room for a replica again."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pipelines.progress import Progress

# A machine that is gone is noticed after 5 to 30 s; a row that takes longer than this costs a look at the nodes.
QUIET_S = 60.0
_LOOK_EVERY_S = 15.0
_END_WITHIN_S = 2.0  # `ray job stop` gives three seconds for all of an end


@contextmanager
def waiting_told(progress: Progress, has_room: Callable[[], bool], needs: str) -> Iterator[None]:
    """Say it once for each time that no row is done for a minute and no machine has room for a replica.

    needs: what a replica takes, in words. The cluster is not asked any more when this is left.
    """
    over = threading.Event()
    message = (
        f"waiting: no machine of the cluster has room for a replica ({needs}). The run goes on when one has; stopped, "
        "the same command goes on later"
    )
    thread = threading.Thread(target=_watch, args=(progress, has_room, message, over), name="gptj-batch-waiting")
    thread.daemon = True
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_END_WITHIN_S)


def _watch(progress: Progress, has_room: Callable[[], bool], message: str, over: threading.Event) -> None:
    """Say the message where rows stand still and there is no room, and again only after rows have gone on."""
    rows, since, told = progress.counts.rows, time.monotonic(), False
    while not over.wait(min(_LOOK_EVERY_S, QUIET_S / 4)):
        if progress.counts.rows != rows:
            rows, since, told = progress.counts.rows, time.monotonic(), False
        elif not told and time.monotonic() - since > QUIET_S:
            with suppress(Exception):  # the head may be gone, which is another watch's matter
                told = not has_room() and not over.is_set()
                if told:
                    progress.say(message)
