import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.errors import RecordError
from gptj_batch.prompts.truncation import truncate


@pytest.mark.parametrize("side", ["left", "right", "error"])
def test_what_fits_stays_as_it_is(side):
    assert truncate([1, 2, 3], 3, side) == ([1, 2, 3], 0)
    assert truncate([], 3, side) == ([], 0)


def test_left_drops_from_the_left_and_keeps_the_end():
    assert truncate([1, 2, 3, 4], 3, "left") == ([2, 3, 4], 1)


def test_right_drops_from_the_end():
    assert truncate([1, 2, 3, 4], 1, "right") == ([1], 3)


def test_error_gives_the_counts_and_the_ways_out():
    with pytest.raises(RecordError, match=r"4 tokens and 3 fit; set truncate to left or right, lower max_new_tokens"):
        truncate([1, 2, 3, 4], 3, "error")


def test_a_limit_below_one_token_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError):
        truncate([1, 2], 0, "left")


@given(st.lists(st.integers()), st.integers(1, 20), st.sampled_from(["left", "right"]))
def test_kept_and_dropped_are_the_whole(token_ids, max_tokens, side):
    kept, num_dropped = truncate(token_ids, max_tokens, side)
    assert len(kept) + num_dropped == len(token_ids) and len(kept) <= max_tokens
    assert kept == (token_ids[num_dropped:] if side == "left" else token_ids[: len(kept)])
