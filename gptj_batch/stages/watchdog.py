"""Watchdog: ends the process of a replica that gets nothing done, or works on one row for too long."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_TICKS_PER_TIMEOUT, _MAX_TICK_S = 10, 5.0


@dataclass
class _Work:
    """Rows that are being done."""

    num_rows: int
    on_timeout: Callable[[], object]
    seconds: float = 0.0


class Watchdog:
    """Look at the work in hand, several times within the time that it may take.

    Time in which the process itself was stopped does not count: a tick is never longer than two.

    moved: anything that changes while something gets done
    end_process: takes the place of the process' end in tests
    """

    def __init__(
        self, timeout_s: float, moved: Callable[[], object], end_process: Callable[[], None] | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._moved = moved
        self._end_process = end_process
        self._tick_s = min(timeout_s / _TICKS_PER_TIMEOUT, _MAX_TICK_S)
        self._lock = threading.Lock()
        self._works: list[_Work] = []
        self._num_done = 0
        self._still_s = 0.0
        self._last: object = None
        self._nowhere = open(os.devnull, "wb")  # noqa: PTH123, SIM115 - kept open for as long as the process lives
        threading.Thread(target=self._watch, name="gptj-batch-watchdog", daemon=True).start()

    @contextmanager
    def watched(self, num_rows: int, on_timeout: Callable[[], object]) -> Iterator[None]:
        """Watch what is done inside; `on_timeout` notes that it took too long."""
        work = _Work(num_rows, on_timeout)
        with self._lock:
            self._works.append(work)
        try:
            yield
        finally:
            with self._lock:
                self._works.remove(work)
                self._num_done += 1

    def _watch(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(self._tick_s)
            now = time.monotonic()
            passed_s, before = min(now - before, 2 * self._tick_s), now
            if self._is_over(passed_s):
                break
            if self._end_process is None:
                self._guard_against_native_code()
        self._end()

    def _guard_against_native_code(self) -> None:
        """Let the process end, too, where native code hangs and lets no Python thread run: this timer needs none."""
        if self._works:
            faulthandler.dump_traceback_later(self._timeout_s + 2 * self._tick_s, exit=True, file=self._nowhere)
        else:
            faulthandler.cancel_dump_traceback_later()

    def _is_over(self, passed_s: float) -> bool:
        with self._lock:
            moved = (self._moved(), self._num_done)
            is_still = bool(self._works) and moved == self._last
            self._still_s = self._still_s + passed_s if is_still else 0.0
            self._last = moved
            for work in self._works:
                work.seconds += passed_s
            alone = len(self._works) == 1 and self._works[0].num_rows == 1 and self._works[0].seconds > self._timeout_s
            return alone or self._still_s > self._timeout_s

    def _end(self) -> None:
        with self._lock:
            for work in self._works:
                work.on_timeout()
        if self._end_process is None:
            os._exit(1)
        self._end_process()
