"""Spans: every run of context tokens as a possible answer, scored over all windows at once.

A span's score is start_logit(first token) + end_logit(last token), the greatest of the windows that hold all of it.
"No answer" has one score too: start_logit + end_logit of the null position, the least of all windows, since there is no
answer only where no window has one (as in BERT's SQuAD 2.0 code, github.com/google-research/bert, run_squad.py).
Probabilities are one softmax over all of them, so that windows can be compared:
p(span) = exp(score) / (exp(null) + sum over spans of exp(score)).

Shape letters: N context tokens   L most tokens of an answer
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Window(NamedTuple):
    """A range of context tokens."""

    first: int
    stop: int


class Span(NamedTuple):
    """A run of context tokens, `last` included, and its probability."""

    first: int
    last: int
    probability: float


def windows(num_tokens: int, room_tokens: int, overlap_tokens: int) -> list[Window]:
    """Cut a context into windows of at most `room_tokens`, each with `overlap_tokens` of the one before."""
    assert 0 <= overlap_tokens < room_tokens, "the settings were checked against the model's context"
    found = [Window(0, min(room_tokens, num_tokens))]
    while found[-1].stop < num_tokens:
        first = found[-1].stop - overlap_tokens
        found.append(Window(first, min(first + room_tokens, num_tokens)))
    return found


class SpanScores:
    """The scores of a context's spans.

    logits: per window those of the null position, then those of the window's tokens
    starts, ends: (N,), the characters of each token; one without characters begins and ends no answer
    """

    def __init__(
        self,
        of_windows: Sequence[Window],
        logits: Sequence[tuple[Sequence[float], Sequence[float]]],
        starts: Sequence[int],
        ends: Sequence[int],
        max_answer_tokens: int,
    ) -> None:
        self._starts, self._ends = np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)
        num_tokens = len(starts)
        # [first, number of further tokens]: (N, L)
        self._sums = np.full((num_tokens, min(max_answer_tokens, num_tokens)), -np.inf)
        nulls = []
        for window, (of_starts, of_ends) in zip(of_windows, logits, strict=True):
            nulls.append(of_starts[0] + of_ends[0])
            self._take(window, np.array(of_starts[1:]), np.array(of_ends[1:]))
        self._null = min(nulls)
        highest = max(self._null, self._sums.max(initial=-np.inf))
        self._log_total = highest + np.log(np.exp(self._sums - highest).sum() + np.exp(self._null - highest))

    def _take(self, window: Window, start_logits: NDArray[np.float64], end_logits: NDArray[np.float64]) -> None:
        """Raise the scores to those of a window.

        start_logits, end_logits: (tokens of the window,)
        """
        blank = self._starts[window.first : window.stop] >= self._ends[window.first : window.stop]
        start_logits, end_logits = (np.where(blank, -np.inf, logits) for logits in (start_logits, end_logits))
        for further in range(min(self._sums.shape[1], len(start_logits))):
            sums = self._sums[window.first : window.stop - further, further]
            np.maximum(sums, start_logits[: len(sums)] + end_logits[further:], out=sums)

    @property
    def null_probability(self) -> float:
        """Return the probability that there is no answer."""
        return float(np.exp(self._null - self._log_total))

    def best(self, number: int) -> list[Span]:
        """Return the likeliest spans, none of which shares a character with a likelier one."""
        sums = self._sums.copy()
        found: list[Span] = []
        while len(found) < number and sums.size:
            first, further = (int(index) for index in np.unravel_index(sums.argmax(), sums.shape))
            if sums[first, further] == -np.inf:
                break
            found.append(Span(first, first + further, float(np.exp(sums[first, further] - self._log_total))))
            self._rule_out(sums, self._starts[first], self._ends[first + further])
        return found

    def _rule_out(self, sums: NDArray[np.float64], start: np.int64, end: np.int64) -> None:
        """Take the spans that share a character with start .. end out of the scores.

        sums: (N, L), changed in place
        """
        sharing = np.flatnonzero((self._starts < end) & (self._ends > start))
        low, high = int(sharing[0]), int(sharing[-1])
        sums[low : high + 1] = -np.inf
        for first in range(max(0, low - sums.shape[1] + 1), low):
            sums[first, low - first :] = -np.inf
