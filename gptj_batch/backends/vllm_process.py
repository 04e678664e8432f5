"""The engine's process ends with its replica.

vLLM computes in a process of its own, or several. A replica that the kernel or Ray kills would leave it behind, waiting
for ever and holding the GPU. So each of them watches the replica, whose number the environment carries.
"""

import os
import select
import signal
import threading
import time
from typing import Final

REPLICA_PID: Final = "GPTJ_BATCH_REPLICA_PID"
POLL_S: Final = 1.0


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
