import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.tasks.pipeline_spans import PipelineScores
from gptj_batch.tasks.spans import Window

LOGITS = st.floats(-8.0, 8.0)
CONTEXT = "ab cd ef gh"  # four tokens
STARTS, ENDS = [0, 3, 6, 9], [2, 5, 8, 11]
LOW = [-9.0] * 5


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def pointing(first: int, last: int) -> tuple[list[float], list[float]]:
    """Logits of a window of four tokens; place 0 is the null position."""
    return [*LOW[:first], 1.0, *LOW[first + 1 :]], [*LOW[:last], 1.0, *LOW[last + 1 :]]


def test_a_score_is_the_product_of_two_probabilities_over_the_window() -> None:
    starts, ends = [0.5, 1.0, 2.5, -1.0, 0.0], [0.0, 3.0, 1.0, 2.0, -2.0]
    scores = PipelineScores([Window(0, 4)], [(starts, ends)], STARTS, ENDS, 2)
    of_start, of_end = softmax(starts), softmax(ends)
    assert scores.null_score == pytest.approx(of_start[0] * of_end[0])
    best, second = scores.best(CONTEXT, 2, 9)
    assert (best["text"], best["start"], best["end"]) == ("cd ef", 3, 8)
    assert best["score"] == pytest.approx(of_start[2] * of_end[3])
    assert second == {"text": "ab", "start": 0, "end": 2, "score": pytest.approx(of_start[1] * of_end[1])}


@given(st.lists(st.tuples(LOGITS, LOGITS), min_size=5, max_size=5), st.integers(1, 5), st.integers(1, 12))
def test_the_best_spans_are_those_found_by_trying_all(
    logits: list[tuple[float, float]], max_tokens: int, top_k: int
) -> None:
    starts, ends = [list(side) for side in zip(*logits, strict=True)]
    of_start, of_end = softmax(starts), softmax(ends)
    every = [of_start[a] * of_end[b] for a in range(1, 5) for b in range(a, min(a + max_tokens, 5))]
    found = PipelineScores([Window(0, 4)], [(starts, ends)], STARTS, ENDS, max_tokens).best(CONTEXT, top_k, top_k)
    assert [answer["score"] for answer in found] == pytest.approx(sorted(every, reverse=True)[:top_k])
    assert all(CONTEXT[a["start"] : a["end"]] == a["text"] for a in found)  # type: ignore[misc]


def test_windows_are_scored_each_by_itself_and_null_is_the_least_of_them() -> None:
    logits = [pointing(1, 1), ([9.0, *LOW[1:]], [9.0, *LOW[1:]])]
    scores = PipelineScores([Window(0, 4), Window(0, 4)], logits, STARTS, ENDS, 4)
    assert scores.null_score == pytest.approx(softmax(logits[0][0])[0] ** 2)
    assert scores.null_score < 1e-6


def test_the_same_text_is_one_answer_with_the_scores_added_up() -> None:
    # Two windows that hold the same token, and a second place with the same word in capitals.
    scores = PipelineScores([Window(0, 4), Window(0, 4)], [pointing(1, 1), pointing(3, 3)], STARTS, ENDS, 1)
    (best, *_) = scores.best("ab cd AB ef", 4, 4)
    assert (best["text"], best["start"]) == ("ab", 0) and best["score"] == pytest.approx(2.0, abs=1e-3)


def test_answers_may_overlap_and_there_may_be_fewer_than_asked_for() -> None:
    found = PipelineScores([Window(0, 2)], [([0.0, 2.0, 1.0], [0.0, 1.0, 2.0])], STARTS[:2], ENDS[:2], 2)
    assert [answer["text"] for answer in found.best("ab cd", 9, 9)] == ["ab cd", "ab", "cd"]


def test_white_space_is_no_part_of_an_answer_and_no_answer() -> None:
    scores = PipelineScores([Window(0, 2)], [([0.0, 9.0, 0.0], [0.0, 0.0, 9.0])], [2, 2], [2, 4], 2)
    assert [(a["text"], a["start"], a["end"]) for a in scores.best(" \tcd", 9, 9)] == [("cd", 2, 4)]


def test_a_window_without_tokens_has_a_null_and_no_answers() -> None:
    scores = PipelineScores([Window(0, 0)], [([1.0], [2.0])], [], [], 15)
    assert scores.null_score == 1.0 and scores.best("", 1, 12) == []
