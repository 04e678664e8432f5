"""Answers: the columns that `extract` adds, whatever its method.

`answer_text`, `answer_start`, `answer_end` and `answer_score` are those of the first of `answers`. Offsets are
Python's, in characters of the rendered context, end exclusive, and context[start:end] is the text, which neither begins
nor ends in white space. "No answer" is an answer with null text and offsets.
"""

from collections.abc import Sequence
from typing import Final, TypedDict

import pyarrow as pa

from gptj_batch.tasks.base import column

_ANSWER: Final = [("text", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("score", pa.float64())]
ANSWER_SCHEMA: Final = pa.schema(
    [*((f"answer_{name}", type_) for name, type_ in _ANSWER), ("answers", pa.list_(pa.struct(_ANSWER)))]
)
EMPTY_CONTEXT: Final = "the context is empty and holds no answer; allow_no_answer makes that a null answer"


class Answer(TypedDict):
    """One of `answers`."""

    text: str | None
    start: int | None
    end: int | None
    score: float


def span_answer(context: str, start: int, end: int, score: float) -> Answer | None:
    """Return the answer context[start:end] without white space at its ends; None where there is no more to it."""
    text = context[start:end]
    kept = text.strip()
    first = start + len(text) - len(text.lstrip())
    return Answer(text=kept, start=first, end=first + len(kept), score=score) if kept else None


def no_answer(score: float) -> Answer:
    """Return the answer that there is none."""
    return Answer(text=None, start=None, end=None, score=score)


def answer_columns(rows: Sequence[Sequence[Answer] | None]) -> list[pa.Array]:
    """Return the columns of ANSWER_SCHEMA from each row's answers, at least one; None gives nulls."""
    columns = []
    for name, _ in _ANSWER:
        values = [None if answers is None else answers[0][name] for answers in rows]  # type: ignore[literal-required]
        columns.append(column(values, ANSWER_SCHEMA.field(f"answer_{name}")))
    return [*columns, column(rows, ANSWER_SCHEMA.field("answers"))]
