"""Checks: what the engines answered, held against each other."""

from collections.abc import Sequence
from typing import Any

from jobs.bench.work import Kind, Numbers


def compare(kind: Kind, ours: Numbers, theirs: Numbers) -> dict[str, Any]:
    """Say how far two engines' answers to the same rows agree; where one did fewer rows, those are compared."""
    both = list(zip(ours, theirs, strict=False))
    if kind == "generate":
        return _tokens(both)
    agreement = {"rows": len(both), "max_difference": float(f"{max(_difference(a, b) for a, b in both):.2g}")}
    if kind == "span":
        return agreement
    return {**agreement, "same_choice": sum(_best(a) == _best(b) for a, b in both) / len(both)}


def wrong_lengths(kind: Kind, outputs: Numbers, lengths: Sequence[int]) -> int:
    """Return how many rows have another number of numbers than they should."""
    return sum(len(output) != length for output, length in zip(outputs, lengths, strict=True))


def _tokens(both: Sequence[tuple[list[float], list[float]]]) -> dict[str, Any]:
    first = [_first_difference(a, b) for a, b in both]
    differing = [place for place in first if place is not None]
    return {
        "rows": len(both),
        "equal_rows": len(both) - len(differing),
        "first_difference_median": sorted(differing)[len(differing) // 2] if differing else None,
    }


def _first_difference(a: Sequence[float], b: Sequence[float]) -> int | None:
    if list(a) == list(b):
        return None
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _difference(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda index: scores[index])
