"""The session of a notebook: its connection to Ray, the keeper of its replicas, and how its results were made.

What stays between two cells is state of the process. All of it is here, behind `session()`; nothing else is global.
"""

import atexit
import logging
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from functools import cache
from typing import Any

from pipelines.cluster import close_connection, named_address, open_connection, set_environment

RELEASED_WITHIN_S = 20.0
# Questions to the keeper that may wait at the same time: one for every task of Ray Data that begins.
KEEPER_CALLS = 256


class Session:
    """What a process keeps between the calls of the notebook functions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keeper: Any = None
        self._connection: tuple[str, str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._calls: dict[int, Any] = {}

    def keeper(self) -> Any:
        """Return the keeper, connecting to Ray where that is still to be done. Raises ConfigError or BackendError."""
        with self._lock:
            self._connect()
            import ray

            connection = _connection()
            if self._keeper is None or self._connection != connection:  # Ray may have been shut down and started anew
                from pipelines.warm_pool import Keeper

                # Where it ends, the replicas that it owns end as well: a new one rightly knows of none.
                options = {"num_cpus": 0, "max_concurrency": KEEPER_CALLS, "max_restarts": -1}
                self._keeper = ray.remote(Keeper).options(**options).remote()
                self._connection = connection
            return self._keeper

    def set_environment(self) -> None:
        """Set what Ray reads when it is imported; whoever imports it must have called this."""
        set_environment(named_address(None))

    def is_this_machine(self) -> bool:
        """Return whether the cluster is this machine alone: the Ray that was started here, or is going to be."""
        if self._is_connected():
            return self._folder is not None
        ray = sys.modules.get("ray")  # imported, it may be connected to a cluster of the caller's
        return named_address(None) == "local" and not (ray is not None and ray.is_initialized())

    def _connect(self) -> None:
        address = named_address(None)
        set_environment(address)
        import ray

        if ray.is_initialized():
            return
        folder = tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp", ignore_cleanup_errors=True)
        open_connection(address, folder.name)
        self._folder = folder
        for name in ("ray", "ray.data"):  # this Ray is ours: it says no more than a job's does
            logging.getLogger(name).setLevel(logging.ERROR)

    def replicas(self) -> list[dict[str, Any]]:
        """Return the facts of every warm replica."""
        with self._lock:
            if not self._is_connected():
                return []
            import ray

            facts: list[dict[str, Any]] = ray.get(self._keeper.facts.remote())
            return facts

    def shutdown(self) -> None:
        """End the replicas, and the Ray that was started for them. Others' Ray stays as it is."""
        with self._lock:
            is_connected = self._is_connected()
            if is_connected:
                self._release()
            if self._folder is not None:
                if is_connected:
                    close_connection()
                self._folder.cleanup()
                self._folder = self._keeper = None

    def _release(self) -> None:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        try:
            ray.get(self._keeper.release.remote(), timeout=RELEASED_WITHIN_S)
        except (GetTimeoutError, RayError):
            # It waits for a replica that does not start. Both end with it.
            with suppress(RayError):
                ray.kill(self._keeper)
            self._connection = None

    def _is_connected(self) -> bool:
        if self._keeper is None:
            return False
        import ray

        return ray.is_initialized() and _connection() == self._connection

    def remember(self, result: Any, call: Any) -> None:
        """Keep what is known of the call that made a result, as long as the result is there."""
        with suppress(TypeError):
            weakref.finalize(result, self._calls.pop, id(result), None).atexit = False
            self._calls[id(result)] = call

    def call_of(self, result: Any) -> Any:
        """Return what `remember` kept of a result; None where nothing is known of it."""
        return self._calls.get(id(result))


def _connection() -> tuple[str, str]:
    """Return what tells one connection of a process from the next: jobs are numbered anew in every cluster."""
    import ray

    context = ray.get_runtime_context()
    return context.gcs_address, context.get_job_id()


@cache
def session() -> Session:
    """Return this process's session."""
    new = Session()
    atexit.register(new.shutdown)
    return new
