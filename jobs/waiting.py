"""Say that a run waits: Ray waits without a word until there is room for a replica again."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from gptj_batch.stages.resources import ReplicaPlan
from pipelines.progress import Progress

# A machine that is gone is noticed after 5 to 30 s; a row that takes longer than this costs a look at the nodes.
QUIET_S = 60.0
_LOOK_EVERY_S = 15.0
_END_WITHIN_S = 2.0  # `ray job stop` gives three seconds for all of an end


def why_waiting(
    replicas: ReplicaPlan, nodes: Sequence[Mapping[str, float]], free: Mapping[str, float], has_begun: bool
) -> str | None:
    """Return what keeps a run in which nothing gets done, as far as the cluster tells; None where it has room.

    nodes: what each node has    free: what nobody has taken of all of them
    has_begun: whether rows of this run have been done. Before that, nobody can tell from outside whether its replica
        is loading a model or waits for others to end.
    """
    if not replicas.has_room(nodes):
        return (
            f"waiting: no machine of the cluster has room for a replica ({replicas.claim}). The run goes on when one "
            "has; stopped, the same command goes on later"
        )
    if has_begun or replicas.fits_into(free):
        return None
    return (
        "no row is done yet: the model is still loading, the first rows take long, or the run waits because others "
        f"hold what a replica takes ({replicas.claim}; free in the whole cluster: {free.get('GPU', 0):g} GPUs and "
        f"{free.get('CPU', 0):g} CPUs)"
    )


@contextmanager
def waiting_told(progress: Progress, why: Callable[[bool], str | None]) -> Iterator[None]:
    """Say why the run waits, once for each time that no row is done for a minute and there is a reason.

    why: returns the reason, told whether rows have been done; the cluster is not asked any more when this is left
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(progress, why, over), name="gptj-batch-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_END_WITHIN_S)


def _watch(progress: Progress, why: Callable[[bool], str | None], over: threading.Event) -> None:
    """Say the reason where rows stand still and there is one, and again only after rows have gone on."""
    rows, since, told = progress.counts.rows, time.monotonic(), False
    while not over.wait(min(_LOOK_EVERY_S, QUIET_S / 4)):
        if progress.counts.rows != rows:
            rows, since, told = progress.counts.rows, time.monotonic(), False
        elif not told and time.monotonic() - since > QUIET_S:
            with suppress(Exception):  # the head may be gone, which is another watch's matter
                reason = why(rows > 0)
                told = reason is not None and not over.is_set()
                if reason is not None and told:
                    progress.say(reason)
