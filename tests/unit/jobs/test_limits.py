import time

import pytest

from gptj_batch.errors import ConfigError
from jobs.failures import Stopped, ending
from jobs.limits import TimeLimits, read_deadline

NOON = 1_764_590_400.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h30m", 9000), ("45m", 2700), ("90s", 90), ("1d", 86_400), ("1d2h3m4s", 93_784), ("0s", 0)]
)
def test_a_time_span_counts_from_now(text: str, seconds: int) -> None:
    assert read_deadline(text, NOON) == NOON + seconds


def test_a_time_is_meant_here_or_where_it_says() -> None:
    assert read_deadline("2025-12-01T12:00:00+00:00", 0.0) == NOON
    assert read_deadline("2025-12-01 14:00+02:00", 0.0) == NOON
    assert read_deadline("2025-12-01T12:00", 0.0) == time.mktime((2025, 12, 1, 12, 0, 0, 0, 0, -1))


@pytest.mark.parametrize("text", ["", "soon", "2.5h", "h", "30", "-1h", "2h 30m", "2025-13-01"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="--deadline: must be a time span such as 2h30m, or a time such as"):
        TimeLimits.of_options(text, None)


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), float("inf")])
def test_gpu_hours_must_be_some(hours: float) -> None:
    with pytest.raises(ConfigError, match="--max-gpu-hours: must be a number above 0"):
        TimeLimits.of_options(None, hours)


def stopped(limits: TimeLimits, num_gpus: float | None = None, seconds: float = 5.0) -> tuple[int, str, float]:
    """Work for some seconds within limits; return the ending and when it came."""
    started = time.monotonic()
    try:
        with limits.kept():
            if num_gpus is not None:
                limits.use_gpus(num_gpus)
            time.sleep(seconds)
    except Stopped as stop:
        return *ending(stop), time.monotonic() - started
    return 0, "", time.monotonic() - started


def test_the_deadline_stops_what_runs_with_75() -> None:
    code, reason, seconds = stopped(TimeLimits(time.time() + 0.5))
    assert (code, reason) == (75, "stopped by --deadline")
    assert 0.4 < seconds < 3


def test_a_deadline_that_is_past_stops_at_once() -> None:
    assert stopped(TimeLimits(time.time() - 100))[0] == 75


def test_gpu_hours_are_shared_by_the_gpus() -> None:
    code, reason, seconds = stopped(TimeLimits(max_gpu_hours=2 / 3600), num_gpus=4)
    assert (code, reason) == (75, "stopped by --max-gpu-hours")
    assert 0.4 < seconds < 3


def test_the_limit_that_comes_first_counts() -> None:
    assert stopped(TimeLimits(time.time() + 0.3, 1.0), num_gpus=1)[1] == "stopped by --deadline"
    assert stopped(TimeLimits(time.time() + 3600, 0.3 / 3600), num_gpus=1)[1] == "stopped by --max-gpu-hours"


def test_without_a_gpu_there_are_no_hours_to_limit() -> None:
    with pytest.raises(ConfigError, match="this run uses no GPU; limit it with --deadline"):
        stopped(TimeLimits(max_gpu_hours=1.0), num_gpus=0)


def test_what_is_done_in_time_is_not_stopped_later() -> None:
    assert stopped(TimeLimits(time.time() + 0.3), seconds=0.0)[0] == 0
    time.sleep(0.5)
    assert stopped(TimeLimits(), num_gpus=4, seconds=0.0)[0] == 0
