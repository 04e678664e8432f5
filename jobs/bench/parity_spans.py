"""Spans by hand from transformers' logits: every span of every window tried, and the steps of its old pipeline.

The old pipeline's steps are those of pipelines/question_answering.py in transformers 4.57.6, for one answer that is not
aligned to words; version 5 has none.
"""

import math
from dataclasses import dataclass
from typing import Final

from gptj_batch.demo import QUESTION_ANSWERING_LAYOUT, QUESTION_ANSWERING_PREFIX
from jobs.bench.parity_oracle import Oracle

WINDOW_TOKENS: Final = 192
STRIDE_TOKENS: Final = 32
MAX_ANSWER_TOKENS: Final = 15

Answer = tuple[int | None, int | None, float]
"""Where it starts and ends in the context, None for no answer, and its probability or score."""


@dataclass(frozen=True)
class Read:
    """A question and a context as tokens; `chars` are the characters of the context that each of its tokens has."""

    prefix: list[int]
    context: list[int]
    chars: list[tuple[int, int]]

    @classmethod
    def of(cls, oracle: Oracle, question: str, context: str) -> "Read":
        """Encode them together."""
        layout = QUESTION_ANSWERING_LAYOUT.format(question=question, context=context)
        encoding = oracle.tokenizer(layout, return_offsets_mapping=True, add_special_tokens=False)
        prefix_chars = len(QUESTION_ANSWERING_PREFIX.format(question=question))
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        num_prefix = sum(end <= prefix_chars for _, end in offsets)
        shift = len(layout) - len(context)
        chars = [_stripped(context, max(start - shift, 0), max(end - shift, 0)) for start, end in offsets[num_prefix:]]
        return cls(ids[:num_prefix], ids[num_prefix:], chars)

    def windows(self) -> list[tuple[int, int]]:
        """Return the ranges of context tokens that are read at once."""
        room = WINDOW_TOKENS - len(self.prefix)
        found = [(0, min(room, len(self.context)))]
        while found[-1][1] < len(self.context):
            first = found[-1][1] - STRIDE_TOKENS
            found.append((first, min(first + room, len(self.context))))
        return found


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, start + len(part.strip())


def best_of_all(oracle: Oracle, question: str, context: str) -> Answer:
    """Return the likeliest answer of one softmax over every span of every window, and no answer."""
    read = Read.of(oracle, question, context)
    scores: dict[tuple[int, int], float] = {}
    null = math.inf
    for first, stop in read.windows():
        starts, ends = (side.tolist() for side in oracle.span_logits([*read.prefix, *read.context[first:stop]]))
        before = len(read.prefix)
        null = min(null, starts[before - 1] + ends[before - 1])
        for span in _spans(read, first, stop):
            score = starts[before + span[0] - first] + ends[before + span[1] - first]
            scores[span] = max(scores.get(span, -math.inf), score)
    (begin, end), score = max(scores.items(), key=lambda item: item[1])
    highest = max(score, null)
    total = highest + math.log(math.exp(null - highest) + sum(math.exp(value - highest) for value in scores.values()))
    if null > score:
        return None, None, math.exp(null - total)
    return read.chars[begin][0], read.chars[end][1], math.exp(score - total)


def _spans(read: Read, first: int, stop: int) -> list[tuple[int, int]]:
    """Return the pairs of tokens of a window that an answer may begin and end with."""
    texts = [place for place in range(first, stop) if read.chars[place][0] < read.chars[place][1]]
    return [(begin, end) for begin in texts for end in texts if begin <= end < begin + MAX_ANSWER_TOKENS]


def best_of_pipeline(oracle: Oracle, question: str, context: str) -> Answer:
    """Return the best answer of the old pipeline: one candidate a window, each by softmaxes of its own."""
    read = Read.of(oracle, question, context)
    by_text: dict[str, tuple[int, int, float]] = {}
    null = math.inf
    for first, stop in read.windows():
        sides = oracle.span_logits([*read.prefix, *read.context[first:stop]])
        starts, ends = (side[len(read.prefix) - 1 :].softmax(0).tolist() for side in sides)
        null = min(null, starts[0] * ends[0])
        scored = {span: starts[span[0] - first + 1] * ends[span[1] - first + 1] for span in _spans(read, first, stop)}
        (begin, end), score = max(scored.items(), key=lambda item: item[1])
        place = read.chars[begin][0], read.chars[end][1]
        text = context[place[0] : place[1]].lower()
        before = by_text.get(text, (*place, 0.0))
        by_text[text] = before[0], before[1], before[2] + score
    best = max(by_text.values(), key=lambda answer: answer[2])
    return best if best[2] >= null else (None, None, null)
