"""The Ray cluster of a run: one that exists, or a local one of its own; see `pipelines.cluster`."""

import gc
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from gptj_batch.importing import uncollected
from pipelines.cluster import close_connection, named_address, open_connection, set_environment


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Be connected to a cluster: the one at `address` or RAY_ADDRESS, else a local one that ends with this process.

    A connection that is already there is used and kept. Yields whether the cluster is one of this process's own, which
    nobody starts again. Raises ConfigError where there is no cluster at the address.
    """
    address = named_address(address)
    set_environment(address)
    with uncollected():
        import ray
        import ray.data

    for name in ("ray", "ray.data"):  # after the import, which sets them too
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # what has failed is said once, by us; Ray's files have it all
            handler.setLevel(logging.CRITICAL)
    if ray.is_initialized():
        # Ray Data leaves its actors to Python's collector. Those of a run that this process did before, the more so of
        # one that failed, hold their CPUs and GPUs until it has been there, and this run might wait for them for ever.
        gc.collect()
        yield False
        return
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        open_connection(address, folder)
        try:
            yield address == "local"
        finally:
            close_connection()
