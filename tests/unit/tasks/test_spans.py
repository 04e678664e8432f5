from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.tasks.spans import Span, SpanScores, Window, windows

LOGITS = st.floats(-8.0, 8.0).map(lambda value: round(value, 2))


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, int]:
    room = draw(st.integers(1, 12))
    return draw(st.integers(0, 40)), room, draw(st.integers(0, room - 1))


@given(cuts())
def test_windows_hold_every_token_fit_and_overlap_as_asked(cut: tuple[int, int, int]) -> None:
    num_tokens, room, overlap = cut
    found = windows(num_tokens, room, overlap)
    assert (found[0].first, found[-1].stop) == (0, num_tokens)
    assert all(window.stop - window.first <= room for window in found)
    assert all(right.first == left.stop - overlap for left, right in pairwise(found))
    assert all(window.stop - window.first == room for window in found[:-1])


@given(cuts())
def test_a_span_no_longer_than_the_overlap_lies_whole_in_some_window(cut: tuple[int, int, int]) -> None:
    num_tokens, room, overlap = cut
    for first in range(num_tokens - overlap):
        assert any(w.first <= first and first + overlap <= w.stop for w in windows(num_tokens, room, overlap))


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[Window], list[tuple[list[float], list[float]]], list[int], list[int], int]:
    """Windows, their logits, and tokens of which some are blank and some share a character with the next."""
    num_tokens, room, overlap = draw(cuts())
    cut = windows(num_tokens, room, overlap)
    logits = []
    for window in cut:
        size = window.stop - window.first + 1
        logits.append(tuple(draw(st.lists(LOGITS, min_size=size, max_size=size)) for _ in range(2)))
    starts, ends, place = [], [], 0
    for kind in draw(st.lists(st.sampled_from(["word", "blank", "shared"]), min_size=num_tokens, max_size=num_tokens)):
        starts.append(place)
        ends.append(place if kind == "blank" else place + 2)
        place += 1 if kind == "shared" else 2
    return cut, logits, starts, ends, draw(st.integers(1, 6))


def by_brute_force(
    of_windows: list[Window],
    logits: list[tuple[list[float], list[float]]],
    starts: list[int],
    ends: list[int],
    most: int,
) -> tuple[dict[tuple[int, int], float], float]:
    """Return every span's probability, and that of no answer, one span after the other."""
    sums: dict[tuple[int, int], float] = {}
    for window, (of_starts, of_ends) in zip(of_windows, logits, strict=True):
        for first in range(window.first, window.stop):
            for last in range(first, min(first + most, window.stop)):
                if starts[first] < ends[first] and starts[last] < ends[last]:
                    score = of_starts[1 + first - window.first] + of_ends[1 + last - window.first]
                    sums[first, last] = max(score, sums.get((first, last), -np.inf))
    null = min(of_starts[0] + of_ends[0] for of_starts, of_ends in logits)
    total = sum(np.exp(score) for score in [null, *sums.values()])
    return {span: float(np.exp(score) / total) for span, score in sums.items()}, float(np.exp(null) / total)


@given(scored(), st.integers(1, 5))
def test_the_best_spans_are_those_found_by_trying_all(
    case: tuple[list[Window], list[tuple[list[float], list[float]]], list[int], list[int], int], number: int
) -> None:
    _, _, starts, ends, _ = case
    expected, null = by_brute_force(*case)
    scores = SpanScores(*case)
    assert scores.null_probability == pytest.approx(null)
    left = dict(expected)
    for span in scores.best(number):
        assert span.probability == pytest.approx(max(left.values()))
        assert span.probability == pytest.approx(expected[span.first, span.last])
        start, end = starts[span.first], ends[span.last]
        left = {(a, b): p for (a, b), p in left.items() if not (starts[a] < end and ends[b] > start)}
    assert len(scores.best(number)) == number or not left


def test_spans_and_no_answer_share_one_softmax_over_all_windows() -> None:
    # Two windows of one token each: spans of 1 + 1 and 0 + 0; nulls of 0 + 0 and 4 + 4, of which the least counts.
    cut = [Window(0, 1), Window(1, 2)]
    scores = SpanScores(cut, [((0.0, 1.0), (0.0, 1.0)), ((4.0, 0.0), (4.0, 0.0))], [0, 2], [1, 3], 30)
    total = np.exp(2.0) + 1 + 1
    assert scores.null_probability == pytest.approx(1 / total)
    assert scores.best(9) == [Span(0, 0, pytest.approx(np.exp(2.0) / total)), Span(1, 1, pytest.approx(1 / total))]


def test_of_a_span_in_two_windows_the_better_score_counts() -> None:
    scores = SpanScores(
        [Window(0, 1), Window(0, 1)], [((0.0, -1.0), (0.0, -1.0)), ((0.0, 1.0), (0.0, 1.0))], [0], [1], 1
    )
    assert scores.best(1)[0].probability == pytest.approx(np.exp(2.0) / (np.exp(2.0) + 1))


def test_of_equal_spans_the_first_and_shortest_wins() -> None:
    zeros = (0.0,) * 4
    found = SpanScores([Window(0, 3)], [(zeros, zeros)], [0, 1, 2], [1, 2, 3], 3).best(1)
    assert (found[0].first, found[0].last) == (0, 0)


def test_blank_tokens_alone_leave_no_answer() -> None:
    scores = SpanScores([Window(0, 2)], [((1.0, 5.0, 5.0), (1.0, 5.0, 5.0))], [0, 1], [0, 1], 5)
    assert scores.best(3) == []
    assert scores.null_probability == 1.0
