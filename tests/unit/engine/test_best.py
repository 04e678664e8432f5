"""The likeliest token by the C++ kernels against torch's `max`."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptj_batch.engine.cpu_kernels import build
from gptj_batch.engine.cpu_kernels.best import best
from gptj_batch.engine.cpu_kernels.build import KernelsUnavailable

from .kernels_here import needs_kernels

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def found(logits: Tensor) -> tuple[list[int], list[bool]]:
    both = best(logits)
    assert both is not None
    token_ids, is_finite = both
    assert token_ids.dtype == torch.int64 and is_finite.dtype == torch.bool
    return token_ids.tolist(), is_finite.tolist()


@needs_kernels
@DTYPES
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 503, 1023, 1024, 1025, 2048, 50_400])
def test_the_highest_is_that_of_torch_at_every_width(width: int, dtype: torch.dtype) -> None:
    logits = torch.randn(5, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    assert found(logits) == (logits.max(-1).indices.tolist(), [True] * 5)


@needs_kernels
@DTYPES
@given(
    places=st.lists(st.integers(0, 2999), min_size=1, max_size=5),
    width=st.integers(1, 3000),
    highest=st.sampled_from([-3.0, 0.0, 7.0]),
)
def test_of_equals_the_first_is_taken(places: list[int], width: int, highest: float, dtype: torch.dtype) -> None:
    places = [place % width for place in places]
    logits = torch.full((1, width), -4.0, dtype=dtype)
    logits[0, places] = highest
    assert found(logits)[0] == [min(places)]


@needs_kernels
@DTYPES
def test_zero_is_zero_whatever_its_sign(dtype: torch.dtype) -> None:
    logits = torch.full((1, 40), -1.0, dtype=dtype)
    logits[0, 7], logits[0, 20] = -0.0, 0.0
    assert found(logits)[0] == [7]


@needs_kernels
@DTYPES
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 1023, 1024, 1039, 1040, 1041])
def test_a_row_that_is_not_finite_is_told_from_its_neighbours(value: float, place: int, dtype: torch.dtype) -> None:
    logits = torch.randn(3, 1042).to(dtype)
    logits[1, place] = value
    token_ids, is_finite = found(logits)
    assert is_finite == [True, False, True]
    assert token_ids[::2] == logits[::2].max(-1).indices.tolist()
    assert 0 <= token_ids[1] < 1042


@needs_kernels
@DTYPES
def test_suppressed_tokens_leave_the_highest_of_the_others(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 100).to(dtype)
    logits[:, :50] = -torch.inf
    assert found(logits)[0] == logits.max(-1).indices.tolist()


@needs_kernels
@DTYPES
def test_a_row_of_nothing_still_gives_a_token_of_the_vocabulary(dtype: torch.dtype) -> None:
    assert found(torch.full((1, 1030), -torch.inf, dtype=dtype)) == ([0], [False])
    assert found(torch.full((1, 1030), torch.nan, dtype=dtype)) == ([0], [False])


@needs_kernels
@DTYPES
def test_the_largest_finite_number_is_finite(dtype: torch.dtype) -> None:
    logits = torch.full((1, 20), torch.finfo(dtype).min, dtype=dtype)
    logits[0, 18] = torch.finfo(dtype).max
    assert found(logits) == ([18], [True])


@needs_kernels
def test_more_threads_find_the_same() -> None:
    logits = torch.randn(37, 1200)
    torch.set_num_threads(4)
    assert found(logits)[0] == logits.max(-1).indices.tolist()


@needs_kernels
def test_no_rows_give_no_tokens() -> None:
    assert found(torch.zeros(0, 50)) == ([], [])


def test_what_the_kernels_do_not_know_is_left_to_torch() -> None:
    assert best(torch.zeros(2, 6).T) is None
    assert best(torch.zeros(2, 6, dtype=torch.float16)) is None
    assert best(torch.zeros(2, 6, device="meta")) is None


def test_without_kernels_it_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(_: object = None) -> Path:
        raise KernelsUnavailable("for the test")

    monkeypatch.setattr(build, "_load", unavailable)
    build._load_once.cache_clear()
    try:
        assert best(torch.zeros(2, 6)) is None
    finally:
        build._load_once.cache_clear()
