import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.progress import LINE_EVERY_S, Counts, Progress, duration


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def unit(rows: int = 10, failed: int = 0, prompt: int = 100, generated: int = 50, truncated: int = 0) -> dict[str, Any]:
    return {
        "unit": 0, "rows": rows, "failed": failed, "truncated": truncated, "duplicates": 2, "prompt_tokens": prompt,
        "generated_tokens": generated, "backend": "{}",
    }  # fmt: skip


def started(total: int = 100, stream: io.StringIO | None = None) -> tuple[Progress, Clock, io.StringIO]:
    clock, stream = Clock(), stream or io.StringIO()
    return Progress(total, stream, clock), clock, stream


def test_units_add_up() -> None:
    counts = Counts().plus(unit(10, 1, 100, 50, 2)).plus(unit(5, 0, 20, 5, 1))
    assert counts == Counts(
        units=2, rows=15, failed=1, truncated=3, duplicates=4, prompt_tokens=120, generated_tokens=55
    )
    assert counts.tokens == 175


def test_to_a_file_goes_a_line_every_ten_seconds() -> None:
    progress, clock, stream = started()
    for _ in range(9):
        clock.now += 4.0
        progress.add(unit())
    # At 12 s, 24 s and 36 s: the first unit after ten seconds have gone by.
    lines = stream.getvalue().splitlines()
    assert [line.split(" (")[0] for line in lines] == ["30 of 100 rows", "60 of 100 rows", "90 of 100 rows"]
    progress.finish()
    assert stream.getvalue().splitlines()[-1].startswith("90 of 100 rows (90%)")
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_on_a_terminal_one_line_renews_itself() -> None:
    progress, clock, stream = started(stream=Terminal())
    for _ in range(4):
        clock.now += 0.3
        progress.add(unit())
    progress.finish()
    text = stream.getvalue()
    assert text.count("\r\x1b[K") == 3 and text.count("\n") == 1 and text.endswith("\n")


def test_rates_count_from_the_first_unit_so_that_start_up_is_left_out() -> None:
    progress, clock, _ = started()
    clock.now += 300.0
    progress.add(unit(10, 0, 100, 50))
    clock.now += 10.0
    progress.add(unit(20, 0, 200, 100))
    assert progress.line() == "30 of 100 rows (30%) | 2.0 rows/s | 30 tokens/s | 35 s left"


def test_units_that_come_out_together_promise_no_more_than_the_whole_time_gives() -> None:
    progress, clock, _ = started()
    clock.now += 16.0
    progress.add(unit(20, 0, 100, 60))
    clock.now += 0.02
    progress.add(unit(60, 0, 100, 60))
    assert progress.line() == "80 of 100 rows (80%) | 5.0 rows/s | 20 tokens/s | 4 s left"


def test_with_one_unit_the_whole_time_counts() -> None:
    progress, clock, _ = started()
    clock.now += 5.0
    progress.add(unit(10, 0, 100, 50))
    assert progress.line() == "10 of 100 rows (10%) | 2.0 rows/s | 30 tokens/s | 45 s left"


def test_failed_rows_are_told_and_none_are_not() -> None:
    progress, clock, _ = started()
    clock.now += 1.0
    progress.add(unit(10))
    assert "failed" not in progress.line()
    progress.add(unit(10, failed=3))
    assert "20 of 100 rows (20%), 3 failed" in progress.line()


def test_before_the_first_unit_there_is_no_rate() -> None:
    progress, _, _ = started()
    assert progress.line() == "0 of 100 rows (0%)"


def test_a_run_without_rows_is_done() -> None:
    progress, _, stream = started(0)
    progress.finish()
    assert stream.getvalue() == "0 of 0 rows (100%)\n"


def test_large_numbers_can_be_read() -> None:
    progress, clock, _ = started(2_000_000)
    clock.now += 10
    progress.add(unit(12_345, 1_000, 1_000_000, 234_567))
    assert progress.line() == (
        "12,345 of 2,000,000 rows (1%), 1,000 failed | 1,234.5 rows/s | 123,457 tokens/s | 26 min 50 s left"
    )


def test_the_seconds_count_from_the_start() -> None:
    progress, clock, _ = started()
    clock.now += 12.5
    assert progress.seconds == 12.5


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10), st.integers(0, 10))), st.integers(0, 100), st.booleans()
)
def test_no_order_of_events_is_too_much(events: list[tuple[float, int, int]], total: int, terminal: bool) -> None:
    progress, clock, stream = started(total, Terminal() if terminal else None)
    for seconds, rows, tokens in events:
        clock.now += seconds
        progress.add(unit(rows, 0, tokens, 0))
        assert progress.line()
    progress.finish()
    assert progress.counts.units == len(events)
    assert (
        terminal or len(stream.getvalue().splitlines()) <= 1 + sum(seconds for seconds, _, _ in events) / LINE_EVERY_S
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.4, "0 s"), (48.4, "48 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"), (3599.6, "1 h 0 min"), (18_600, "5 h 10 min"), (3_600_000, "1,000 h 0 min"),
    ],
)  # fmt: skip
def test_time_spans_are_written_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text
