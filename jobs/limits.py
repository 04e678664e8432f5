"""Limits of a run's time: a deadline, and hours of GPUs. At either, a run stops as at a signal, to be gone on with."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType

from gptj_batch.errors import ConfigError, shorten
from jobs.failures import EXIT_OUT_OF_TIME, Stopped

_SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SECONDS = (86_400, 3_600, 60, 1)
_NOW_S = 1e-3  # a timer of 0 is none


class TimeLimits:
    """When a run must stop, at the latest; the deadline in seconds since 1970."""

    def __init__(
        self,
        deadline: float | None = None,
        max_gpu_hours: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._deadline = deadline
        self._max_gpu_hours = max_gpu_hours
        self._clock = clock

    @classmethod
    def of_options(cls, deadline: str | None, max_gpu_hours: float | None) -> "TimeLimits":
        """Return the limits that the command line asks for. Raises ConfigError."""
        if max_gpu_hours is not None and not 0 < max_gpu_hours < float("inf"):
            raise ConfigError(f"--max-gpu-hours: must be a number above 0, got {max_gpu_hours:g}")
        return cls(None if deadline is None else read_deadline(deadline, time.time()), max_gpu_hours)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Raise `Stopped` in the main thread when the deadline comes while what is inside is done."""
        if self._deadline is None and self._max_gpu_hours is None:
            yield
            return
        before = signal.signal(signal.SIGALRM, self._stop)
        try:
            self._arm(self._seconds_left(), "--deadline")
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def use_gpus(self, number: float) -> None:
        """Begin to count the hours of so many GPUs, inside `kept`. Raises ConfigError where none would be counted."""
        if self._max_gpu_hours is None:
            return
        if not number:
            raise ConfigError("--max-gpu-hours: this run uses no GPU; limit it with --deadline")
        gpu_seconds, left = self._max_gpu_hours * 3600 / number, self._seconds_left()
        if left is None or gpu_seconds < left:
            self._arm(gpu_seconds, "--max-gpu-hours")

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else self._deadline - self._clock()

    def _arm(self, seconds: float | None, by: str) -> None:
        self._by = by
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, _NOW_S))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        raise Stopped(self._by, EXIT_OUT_OF_TIME)


def read_deadline(text: str, now: float) -> float:
    """Return the time that "2h30m" from now, or "2026-11-25T06:00" here, means. Raises ConfigError for others."""
    if (match := _SPAN.fullmatch(text)) and any(match.groups()):
        return now + sum(int(number or 0) * unit for number, unit in zip(match.groups(), _SECONDS, strict=True))
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f'--deadline: must be a time span such as 2h30m, or a time such as 2026-11-25T06:00, got "{shorten(text)}"'
        ) from None
