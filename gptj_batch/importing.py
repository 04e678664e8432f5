"""Importing large packages in less time."""

import gc
import sys
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
    gc.collect(1)  # what is young and garbage now would become old below, and wait for long
    gc.disable()
    num_modules = len(sys.modules)
    try:
        yield
    finally:
        # what others froze, they want out of the collector's sight
        if len(sys.modules) > num_modules and gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()  # together: what is young becomes old, without being looked at
        gc.enable()
