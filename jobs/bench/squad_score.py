"""Exact match and F1 as SQuAD 2.0's own evaluation has them: rajpurkar.github.io/SQuAD-explorer, evaluate-v2.0.py."""

import re
import string
from collections import Counter
from collections.abc import Sequence

Pair = tuple[str, Sequence[str]]
"""What was answered, empty for no answer, and the answers that are right; none where there is none."""


def normalized(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, with single spaces."""
    kept = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact(answer: str, right: str) -> float:
    """Return 1.0 where two texts are the same once they are normalised, else 0.0."""
    return float(normalized(answer) == normalized(right))


def f1(answer: str, right: str) -> float:
    """Return the harmonic mean of precision and recall over the words of two texts."""
    found, wanted = normalized(answer).split(), normalized(right).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def mean_scores(pairs: Sequence[Pair]) -> dict[str, float | int]:
    """Return the scores over all questions, in percent, and over those with and without an answer."""
    scored = []
    for answer, given in pairs:
        # An answer that is nothing but articles or punctuation is none, to the evaluation.
        right = [text for text in given if normalized(text)] or [""]
        scored.append((bool(given), max(exact(answer, r) for r in right), max(f1(answer, r) for r in right)))
    groups = {
        "": scored,
        "_with_an_answer": [row for row in scored if row[0]],
        "_without_an_answer": [row for row in scored if not row[0]],
    }
    report: dict[str, float | int] = {}
    for name, rows in groups.items():
        report[f"questions{name}"] = len(rows)
        if rows:
            report[f"exact{name}"] = round(100 * sum(row[1] for row in rows) / len(rows), 2)
            report[f"f1{name}"] = round(100 * sum(row[2] for row in rows) / len(rows), 2)
    report["answered_with_none"] = sum(not answer for answer, _ in pairs)
    return report
