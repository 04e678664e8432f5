from typing import Any

import pytest

from gptj_batch.errors import TooManyFailedError
from pipelines.breaker import Breaker
from pipelines.progress import Counts
from pipelines.settings import ErrorSettings


def check(rows: int, failed: int, before: tuple[int, int] = (0, 0), **settings: Any) -> None:
    reasons = {"a": 3, "b": 700, "c": 2, "d": 1}
    breaker = Breaker(ErrorSettings(**settings), lambda: reasons, "begin anew", *before)
    breaker.check(Counts(rows=rows, failed=failed))


def test_a_run_whose_first_rows_all_fail_is_stopped_with_what_to_do() -> None:
    with pytest.raises(TooManyFailedError) as caught:
        check(1024, 1024)
    assert "1,024 of the first 1,024 rows failed" in str(caught.value)
    assert "700 x b; 3 x a; 2 x c." in str(caught.value)
    assert "Remove the cause and begin anew, or" in str(caught.value) and "errors.stop_after=null" in str(caught.value)


@pytest.mark.parametrize(("rows", "failed", "before"), [(0, 0, (1000, 1000)), (32, 32, (990, 960)), (1, 0, (999, 999))])
def test_what_was_done_before_counts_too(rows: int, failed: int, before: tuple[int, int]) -> None:
    with pytest.raises(TooManyFailedError, match=f"of the first {rows + before[0]:,} rows failed"):
        check(rows, failed, before)


def test_a_run_goes_on_where_few_failed_before() -> None:
    check(500, 500, before=(10_000, 0))


@pytest.mark.parametrize(
    ("rows", "failed", "settings"),
    [
        (999, 999, {}),
        (1000, 900, {}),
        (10**6, 10**4, {}),
        (10**6, 10**6, {"stop_after": None}),
        (2000, 2000, {"max_failed_rows": 2000}),
        (2000, 1900, {"max_failed_rows": 0.95}),
        (2000, 2000, {"stop_share": 1.0}),
    ],
)
def test_a_run_goes_on_where_few_fail_or_many_may(rows: int, failed: int, settings: dict[str, Any]) -> None:
    check(rows, failed, **settings)


@pytest.mark.parametrize(
    ("rows", "failed", "settings"),
    [
        (1000, 901, {}),
        (2001, 2001, {"max_failed_rows": 2000}),
        (2000, 1901, {"max_failed_rows": 0.95}),
        (32, 32, {"stop_after": 10}),
        (1000, 501, {"stop_share": 0.5}),
    ],
)
def test_the_settings_say_when_it_is_stopped(rows: int, failed: int, settings: dict[str, Any]) -> None:
    with pytest.raises(TooManyFailedError):
        check(rows, failed, **settings)
