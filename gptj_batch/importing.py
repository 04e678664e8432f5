"""Importing large packages in less time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold the garbage collector off while modules are imported.

    An import makes some hundred thousand objects that stay. The collector goes through all of them again and again and
    finds nothing: up to a fifth of the time that torch takes, and 0.2 s right after it (`jobs/bench/cold_start.py`).
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # else someone keeps objects out of the collector's sight, and wants it so
            gc.freeze()
            gc.unfreeze()  # together: what is young becomes old, without being looked at
        gc.enable()
