import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import count

from gptj_batch.stages.watchdog import Watchdog


def watched(timeout_s: float, works: list[tuple[int, float]], moves: bool) -> list[str]:
    """Do works of so many rows and seconds at the same time, and return what the watchdog called."""
    log: list[str] = []
    steps = count()
    dog = Watchdog(timeout_s, lambda: next(steps) if moves else 0, lambda: log.append("end"))

    def do(num_rows: int, seconds: float) -> None:
        with dog.watched(num_rows, lambda: log.append(f"note {num_rows}")):
            time.sleep(seconds)

    threads = [threading.Thread(target=do, args=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return log


def test_a_replica_that_gets_nothing_done_is_ended_with_a_note_of_all_it_does() -> None:
    assert sorted(watched(0.4, [(5, 1.2), (6, 1.2)], moves=False)) == ["end", "note 5", "note 6"]


def test_a_replica_that_gets_something_done_is_left_alone() -> None:
    assert watched(0.4, [(5, 1.2), (6, 1.2)], moves=True) == []


def test_one_row_alone_has_its_time_however_much_moves() -> None:
    assert watched(0.4, [(1, 1.2)], moves=True) == ["note 1", "end"]


def test_a_replica_without_work_may_rest() -> None:
    assert watched(0.3, [(5, 0.0)], moves=False) == []
    log: list[str] = []
    Watchdog(0.2, lambda: 0, lambda: log.append("end"))
    time.sleep(0.8)
    assert log == []


IN_A_PROCESS = """
    import ctypes, time
    from gptj_batch.stages.watchdog import Watchdog
    dog = Watchdog(1.0, lambda: 0)
    with dog.watched(5, lambda: None):
        print("working", flush=True)
        {work}
"""


def start(work: str) -> "subprocess.Popen[str]":
    code = textwrap.dedent(IN_A_PROCESS.format(work=work))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    return process


def test_native_code_that_lets_no_python_run_is_ended_too() -> None:
    # PyDLL keeps the interpreter's lock, as an extension that hangs may do.
    process = start("time.sleep(0.5); ctypes.PyDLL(None).sleep(60)")
    assert process.wait(20) == 1


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    log: list[str] = []
    dog = Watchdog(1.0, lambda: 0, lambda: log.append("end"))
    with dog.watched(5, lambda: None):
        before = time.monotonic()
        child = os.fork()
        if child == 0:
            time.sleep(0.3)
            os.kill(os.getppid(), signal.SIGSTOP)
            time.sleep(0.8)
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        while time.monotonic() - before < 1.3:
            time.sleep(0.01)
    os.waitpid(child, 0)
    assert log == []
