"""Rows made from seeds: the same lengths in every round, other tokens, so that no engine finds a round in its cache."""

import random
from collections.abc import Sequence

from jobs.bench.work import Work, WorkRow

VOCAB_SIZE = 50_000  # the ids above belong to nothing, or end a text
Draw = random.Random


def seeded(*parts: object) -> Draw:
    """Return a source of numbers that these parts name."""
    return random.Random(repr(parts))  # noqa: S311 - not for secrets


def tokens(draw: Draw, count: int) -> list[int]:
    """Draw tokens."""
    return [draw.randrange(VOCAB_SIZE) for _ in range(count)]


def ragged(count: int, seed: int, *, shortest: int, longest: int, new_tokens: int) -> Work:
    """Return prompts of evenly spread lengths, each to be continued by as many tokens."""
    lengths, draw = seeded("ragged"), seeded("ragged", seed)
    return Work(
        kind="generate",
        rows=[
            WorkRow(prompt=tokens(draw, lengths.randint(shortest, longest)), max_new_tokens=new_tokens)
            for _ in range(count)
        ],
    )


def geometric(count: int, seed: int, *, prompt_tokens: int, mean: int, cap: int) -> Work:
    """Return prompts of one length, to be continued by geometrically distributed numbers of tokens."""
    lengths, draw = seeded("geometric"), seeded("geometric", seed)

    def num_new() -> int:
        number = 1
        while number < cap and lengths.random() > 1 / mean:
            number += 1
        return number

    return Work(
        kind="generate",
        rows=[WorkRow(prompt=tokens(draw, prompt_tokens), max_new_tokens=num_new()) for _ in range(count)],
    )


def shared_instruction(count: int, seed: int, *, shared: int, own: int, num_labels: int) -> Work:
    """Return rows that begin alike, each to be given one of a few one-token labels."""
    draw = seeded("shared", seed)
    instruction, labels = tokens(draw, shared), draw.sample(range(VOCAB_SIZE), num_labels)
    return Work(
        kind="labels",
        rows=[
            WorkRow(prompt=instruction + tokens(draw, own), labels=tuple((label,) for label in labels))
            for _ in range(count)
        ],
    )


def long_labels(count: int, seed: int, *, own: int, num_labels: int, label_tokens: int) -> Work:
    """Return rows of their own, each to be given one of a few labels of several tokens."""
    draw = seeded("long labels", seed)
    labels = tuple(tuple(tokens(draw, label_tokens)) for _ in range(num_labels))
    return Work(kind="labels", rows=[WorkRow(prompt=tokens(draw, own), labels=labels) for _ in range(count)])


def lognormal_texts(count: int, seed: int, *, shortest: int, longest: int) -> Work:
    """Return texts for a classification head, most short and some long: about 98 tokens on average for 8 to 256."""
    lengths, draw = seeded("lognormal"), seeded("lognormal", seed)
    sizes = [min(longest, max(shortest, round(lengths.lognormvariate(4.42, 0.6)))) for _ in range(count)]
    return Work(kind="classify", rows=[WorkRow(prompt=tokens(draw, size)) for size in sizes])


def questions(count: int, seed: int, *, question: int, shortest: int, longest: int) -> Work:
    """Return a question and a context each, for the span head."""
    lengths, draw = seeded("questions"), seeded("questions", seed)
    return Work(
        kind="span",
        rows=[
            WorkRow(prompt=tokens(draw, question + lengths.randint(shortest, longest)), first_token=question)
            for _ in range(count)
        ],
    )


def repeated(prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Work:
    """Return a label row for each of some given prompts."""
    shared = tuple(tuple(label) for label in labels)
    return Work(kind="labels", rows=[WorkRow(prompt=list(prompt), labels=shared) for prompt in prompts])
