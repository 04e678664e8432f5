"""Spans as transformers' question-answering pipeline scored them, in its last version (4.57.6; version 5 has none).

Each window is by itself: a softmax over its start logits and one over its end logits, the null position and the context
taking part, the question not. A span's score is the product of its two probabilities; that of "no answer" the product
at the null position, the least of all windows. Candidates are the `top_k` best spans of each window or, where they are
aligned to words, the 2 * top_k + 10 best. Those of the same text, upper or lower case, become one at the place of the
first, their scores added up, so a score may exceed 1. Answers may overlap. Scores of different windows are compared
although each has its own softmax: that is what `scoring: global_softmax` does otherwise.

Not as there: GPT-J has no CLS token, and the null position (see `gptj_batch.tasks.extract`) stands for it; white space
around an answer is no part of it; a span of negative length or of white space alone is no answer.

Shape letters: N context tokens of a window   L most tokens of an answer
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gptj_batch.tasks.answers import Answer, span_answer
from gptj_batch.tasks.spans import Window

Floats = NDArray[np.float64]


class PipelineScores:
    """The answers of a context, and the score of none.

    logits: per window those of the null position, then those of the window's tokens
    starts, ends: the characters of each token of the context, or of its word
    """

    def __init__(
        self,
        of_windows: Sequence[Window],
        logits: Sequence[tuple[Sequence[float], Sequence[float]]],
        starts: Sequence[int],
        ends: Sequence[int],
        max_answer_tokens: int,
    ) -> None:
        self._windows = of_windows
        self._chars = (starts, ends)
        self._has_text = np.array(starts, dtype=np.int64) < np.array(ends, dtype=np.int64)
        self._max_answer_tokens = max_answer_tokens
        self._probabilities = [tuple(_softmax(np.array(side)) for side in sides) for sides in logits]

    @property
    def null_score(self) -> float:
        """Return the score of "no answer"."""
        return min(float(starts[0] * ends[0]) for starts, ends in self._probabilities)

    def best(self, context: str, top_k: int, num_candidates: int) -> list[Answer]:
        """Return the `top_k` answers, the best first, out of so many candidates of each window."""
        by_text: dict[str, Answer] = {}
        for window, (starts, ends) in zip(self._windows, self._probabilities, strict=True):
            has_text = self._has_text[window.first : window.stop]
            spans = _candidates(starts[1:], ends[1:], has_text, self._max_answer_tokens, num_candidates)
            for first, last, score in spans:
                start, end = self._chars[0][window.first + first], self._chars[1][window.first + last]
                answer = span_answer(context, start, end, score)
                if answer is None or answer["text"] is None:
                    continue
                same = by_text.setdefault(answer["text"].lower(), answer)
                if same is not answer:
                    same["score"] += score
        return sorted(by_text.values(), key=lambda answer: answer["score"], reverse=True)[:top_k]


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    shares: Floats = weights / weights.sum()
    return shares


def _candidates(
    starts: Floats, ends: Floats, has_text: NDArray[np.bool_], max_tokens: int, number: int
) -> list[tuple[int, int, float]]:
    """Return the best spans as (first, last, score), the best first, of equal ones the first and shortest.

    starts, ends, has_text: (N,); a span needs one token that is more than white space
    """
    length = min(max_tokens, len(starts))
    num_texts = np.concatenate([[0], np.cumsum(has_text)])
    # [first, number of further tokens]: (N, L), below 0 where there is no such span
    scores = np.full((len(starts), length), -1.0)
    for further in range(length):
        size = len(starts) - further
        is_text = num_texts[further + 1 :] > num_texts[:size]
        scores[:size, further] = np.where(is_text, starts[:size] * ends[further:], -1.0)
    order = np.argsort(-scores, axis=None, kind="stable")[:number]
    places = [divmod(int(place), length) for place in order]
    return [
        (first, first + further, float(scores[first, further]))
        for first, further in places
        if scores[first, further] >= 0.0
    ]
