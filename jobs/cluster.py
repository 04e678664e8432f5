"""The Ray cluster of a run: one that exists, or a local one of its own.

Ray reads its settings from the environment when it is imported. They are set here before that, which is why Ray is
imported inside the functions, and `pipelines.build` inside the one that runs it.
"""

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gptj_batch.errors import ConfigError

# The object store holds the tables in flight; this is far more than they need, and fits a small /dev/shm.
LOCAL_OBJECT_STORE_BYTES = 1 << 30


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster: the one at `address` or RAY_ADDRESS, else a local one that ends with this process.

    Raises ConfigError where there is no cluster at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _set_environment(address)
    import ray
    import ray.data

    for name in ("ray", "ray.data"):  # after the import, which sets them too
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            if address == "local":
                _start_local(folder)
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"no Ray cluster can be reached at {address}: {str(error).splitlines()[0]}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _set_environment(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's own processes write what Ray Data does by design (actors with arguments in the store) to stderr as errors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # A cluster of one's own on a machine that others use too: a token that only this process knows keeps them out.
    # Without it Ray would write one to ~/.ray/auth_token.
    if address == "local" and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _start_local(folder: str) -> None:
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        _temp_dir=folder,  # short: a socket's path has room for about a hundred characters
    )


def node_resources() -> list[Mapping[str, float]]:
    """Return what each living node of the cluster has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
