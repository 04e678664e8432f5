"""The progress of a notebook function: a bar in Jupyter, lines elsewhere, or nothing."""

import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol, TextIO

from pipelines.progress import Counts, Progress, duration

RATES_EVERY_S = 0.5


class Shown(Protocol):
    """Progress that is told of every finished unit."""

    @property
    def counts(self) -> Counts:
        """Return what was done so far."""
        ...

    @property
    def seconds(self) -> float:
        """Return the seconds since the start."""
        ...

    def add(self, counts: Mapping[str, Any]) -> None:
        """Take a finished unit's counts."""
        ...

    def finish(self) -> None:
        """End the display, also where the work ended early."""
        ...


def progress_of(name: str, total_rows: int | None, is_wanted: bool) -> Shown:
    """Return the progress that suits where this runs; None where nobody knows how many rows there will be."""
    if not is_wanted:
        return Silent()
    return Bar(name, total_rows) if in_jupyter() else Line(name, total_rows, sys.stderr)


def in_jupyter() -> bool:
    """Tell whether a kernel of Jupyter runs this."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class Silent:
    """Count, and show nothing."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """See `Shown`."""
        return time.monotonic() - self._started

    def add(self, counts: Mapping[str, Any]) -> None:
        """See `Shown`."""
        self.counts = self.counts.plus(counts)

    def finish(self) -> None:
        """See `Shown`."""


class Line(Silent):
    """The line of a job while it goes on, and one with the whole call's rates at its end."""

    def __init__(self, name: str, total_rows: int | None, stream: TextIO) -> None:
        super().__init__()
        self._name = name
        self._stream = stream
        self._progress = None if total_rows is None else Progress(total_rows, stream)

    def add(self, counts: Mapping[str, Any]) -> None:
        """See `Shown`."""
        super().add(counts)
        if self._progress is not None:
            self._progress.add(counts)

    def finish(self) -> None:
        """See `Shown`."""
        text = _last_line(self._name, self.counts, self.seconds)
        self._stream.write(f"\r\x1b[K{text}\n" if self._stream.isatty() else f"{text}\n")
        self._stream.flush()


class Bar(Silent):
    """A bar of tqdm with rows/s, tokens/s and failures; a widget where ipywidgets are installed, else text.

    A widget is not stored with the notebook: at its end the bar goes, and a line with the whole call's rates stays.
    """

    def __init__(self, name: str, total_rows: int | None) -> None:
        if find_spec("ipywidgets") is not None:
            from tqdm.notebook import tqdm
        else:
            from tqdm import tqdm
        super().__init__()
        self._name = name
        self._bar = tqdm(total=total_rows, desc=name, unit=" rows", file=sys.stderr, leave=False)
        self._first: tuple[float, Counts] | None = None
        self._shown_s = 0.0

    def add(self, counts: Mapping[str, Any]) -> None:
        """See `Shown`. The rate counts from the first finished unit on, so that loading a model is left out."""
        super().add(counts)
        self._bar.update(counts["rows"])
        now = time.monotonic()
        if self._first is None:
            self._first = now, self.counts
        elif now - self._shown_s >= RATES_EVERY_S:
            self._shown_s = now
            since, before = self._first
            self._bar.set_postfix_str(_tokens_per_s(self.counts, now - since, before.tokens))

    def finish(self) -> None:
        """See `Shown`."""
        self._bar.close()
        sys.stdout.write(_last_line(self._name, self.counts, self.seconds) + "\n")


def _last_line(name: str, counts: Counts, seconds: float) -> str:
    rows_per_s = f"{counts.rows / max(seconds, 1e-9):,.1f} rows/s"
    return f"{name}: {counts.rows:,} rows in {duration(seconds)} | {rows_per_s} | {_tokens_per_s(counts, seconds)}"


def _tokens_per_s(counts: Counts, seconds: float, tokens_before: int = 0) -> str:
    text = f"{(counts.tokens - tokens_before) / max(seconds, 1e-9):,.0f} tokens/s"
    return text + (f", {counts.failed:,} failed" if counts.failed else "")
