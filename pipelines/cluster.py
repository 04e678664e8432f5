"""A connection to Ray: to a cluster that exists, or to a local one that is started.

Ray reads its settings from the environment when it is imported. They are set here before that, which is why Ray is
imported inside the functions. A notebook has no job above it that could read the environment, so this file does.
"""

import logging
import os
import secrets
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gptj_batch.errors import BackendError, ConfigError

# The object store holds the tables in flight; this is far more than they need, and fits a small /dev/shm.
LOCAL_OBJECT_STORE_BYTES = 1 << 30
# Ray ends workers that are idle for a second, down to one for each CPU, and a new one takes seconds of a CPU to import
# what it needs: on two CPUs, where four stages and a replica take turns, a sixth of a short run's time went there.
IDLE_WORKERS = 8
CONNECT_TIMEOUT_S = 10.0
THREADS_END_WITHIN_S = 10.0
_CREDENTIALS = struct.Struct("3i")  # process, user and group at a socket's other end, as Linux gives them


def named_address(address: str | None) -> str:
    """Return where the cluster is that was named here or in RAY_ADDRESS; `local` where neither names one."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


def open_connection(address: str, folder: str) -> None:
    """Connect to the cluster at `address`; `local` starts one that keeps its files in `folder`.

    Raises ConfigError where there is none, BackendError where a local one cannot be started.
    """
    import ray

    try:
        with _quiet_stderr(), _signals_kept():
            if address == "local":
                _start_local(folder)
            else:
                _check_reachable(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # a plain one where Ray's processes do not come up in time
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address == "local":
            raise BackendError(f"a local Ray cluster could not be started: {reason}") from error
        raise ConfigError(f"no Ray cluster can be reached at {address} (--address, RAY_ADDRESS): {reason}") from error


def close_connection() -> None:
    """Leave Ray, and end the local cluster; Ray Data's threads end before.

    Ray Data itself waits two seconds for them, which may be too short on a busy machine. A thread that speaks with Ray
    while that is shut down makes Ray end the process, with exit code 1 and no word at our level of its log.
    """
    import ray

    until = time.monotonic() + THREADS_END_WITHIN_S
    for thread in _threads_in("ray.data"):
        thread.join(max(0.0, until - time.monotonic()))
    ray.shutdown()


def _threads_in(package: str) -> list[threading.Thread]:
    """Return the other threads that run code of a package, however deep below other code."""
    frames, found = sys._current_frames(), []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0) if thread is not threading.current_thread() else None
        while frame is not None and not f"{frame.f_globals.get('__name__')}.".startswith(f"{package}."):
            frame = frame.f_back
        if frame is not None:
            found.append(thread)
    return found


def set_environment(address: str) -> None:
    """Set what Ray reads when it is imported, but nothing that the user has set."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray Data keeps the share of a run that was killed for this long after its last word, and a rerun waits for it.
    os.environ.setdefault("RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS", "5")
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "20")
    # The driver's part of Ray prints what Ray Data does by design (actors with arguments in the store) as errors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # A cluster of one's own on a machine that others use too: a token that only this process knows keeps them out.
    # Without it Ray would write one to ~/.ray/auth_token.
    if address == "local" and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _check_reachable(address: str) -> None:
    """Raise ConnectionError where nobody listens at host:port; Ray would try for minutes before it says so."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from error


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what native code prints while Ray starts: it announces its own log level there."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put the handler of SIGTERM back: Ray has one that ends the process without a word, with exit code 15."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _start_local(folder: str) -> None:
    """Start a cluster, and once more where a busy machine took longer than the 30 seconds that Ray waits for it."""
    import ray

    try:
        _init_local(folder)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        _init_local(folder)


def _init_local(folder: str) -> None:
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        _temp_dir=folder,  # short: a socket's path has room for about a hundred characters
        _system_config={
            # Else Ray holds the driver until a worker for each CPU has come up, for ever if one of them is killed
            # before (https://github.com/ray-project/ray/issues/40131).
            "prestart_worker_first_driver": False,
            "num_workers_soft_limit": max(IDLE_WORKERS, os.cpu_count() or 1),
        },
    )


def node_resources() -> list[Mapping[str, float]]:
    """Return what each living node of the cluster has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def free_resources() -> Mapping[str, float]:
    """Return what nobody has taken, of all nodes together."""
    import ray

    free: Mapping[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free


def head_address() -> str:
    """Return host:port of the head's server, which everything depends on; nothing where there is no connection."""
    import ray

    return str(ray.get_runtime_context().gcs_address) if ray.is_initialized() else ""


def raylet_process() -> int | None:
    """Return the process of the raylet that this one is connected through; None where the system does not tell."""
    import ray

    if not ray.is_initialized() or not hasattr(socket, "SO_PEERCRED"):
        return None
    here = ray.get_runtime_context().get_node_id()
    names = [node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == here]  # type: ignore[no-untyped-call]
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(names[0])
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except (OSError, IndexError):
        return None
    return int(_CREDENTIALS.unpack(credentials)[0]) or None  # 0: a process of another container
