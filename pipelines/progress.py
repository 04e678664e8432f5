"""Progress: a line that renews itself on a terminal, a line every ten seconds elsewhere."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TextIO

LINE_EVERY_S = 10.0
TERMINAL_EVERY_S = 0.5
SETTLED_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What has been done so far."""

    units: int = 0
    rows: int = 0
    failed: int = 0
    truncated: int = 0
    duplicates: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def plus(self, counts: Mapping[str, Any]) -> "Counts":
        """Return the counts with one more unit's (`stages.write.COUNTS`)."""
        return replace(
            self,
            units=self.units + 1,
            rows=self.rows + counts["rows"],
            failed=self.failed + counts["failed"],
            truncated=self.truncated + counts["truncated"],
            duplicates=self.duplicates + counts["duplicates"],
            prompt_tokens=self.prompt_tokens + counts["prompt_tokens"],
            generated_tokens=self.generated_tokens + counts["generated_tokens"],
        )

    @property
    def tokens(self) -> int:
        """Return prompt and generated tokens together."""
        return self.prompt_tokens + self.generated_tokens


class Progress:
    """Tells on a stream how far a run is.

    Rates count from the end of start-up, which ends when the first unit comes out, so that loading a model does not
    make the estimate of the time left wrong; but units may come out together, and `SETTLED_S` later is soon enough.
    """

    def __init__(self, total_rows: int, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = Counts()
        self._total_rows = total_rows
        self._stream = stream
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._started = clock()
        self._last_line = self._started
        self._first: tuple[float, Counts] | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds since the start."""
        return self._clock() - self._started

    def add(self, counts: Mapping[str, Any]) -> None:
        """Take a finished unit's counts, and write a line where one is due."""
        self.counts = self.counts.plus(counts)
        if self._first is None:
            self._first = (self._clock(), self.counts)
        now = self._clock()
        if now - self._last_line >= (TERMINAL_EVERY_S if self._is_terminal else LINE_EVERY_S):
            self._last_line = now
            self._write(self.line())

    def say(self, message: str) -> None:
        """Write a message that stays, above the line that renews itself."""
        self._write(message)
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()

    def finish(self) -> None:
        """Write the last line."""
        self.say(self.line())

    def line(self) -> str:
        """Return rows, share, rows/s, tokens/s and the time left."""
        counts, total = self.counts, self._total_rows
        share = f"{counts.rows / total:.0%}" if total else "100%"
        text = f"{counts.rows:,} of {total:,} rows ({share})"
        if counts.failed:
            text += f", {counts.failed:,} failed"
        rows_per_s, tokens_per_s = self._rates()
        if rows_per_s > 0:
            left_s = (total - counts.rows) / rows_per_s
            text += f" | {rows_per_s:,.1f} rows/s | {tokens_per_s:,.0f} tokens/s | {duration(left_s)} left"
        return text

    def _rates(self) -> tuple[float, float]:
        """Return rows/s and tokens/s, from the first finished unit on where that is a while ago and more are done."""
        now, since, before = self._clock(), self._started, Counts()
        if self._first is not None and self.counts.units > self._first[1].units and now - self._first[0] >= SETTLED_S:
            since, before = self._first
        elapsed = max(now - since, 1e-9)
        return (self.counts.rows - before.rows) / elapsed, (self.counts.tokens - before.tokens) / elapsed

    def _write(self, line: str) -> None:
        self._stream.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Return a time span as people write it: 48 s, 3 min 20 s, 5 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
