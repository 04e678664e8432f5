"""Agreement: how far two engines' answers to the same requests are apart."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gptj_batch.requests import AnyRequest, Request
from gptj_batch.results import AnyResult, Classified, Embedded, Failed, Generated, Labelled, Scored, SpanLogits

# What rounding alone does to a log-probability, a logit or a coordinate; narrower types round at other places.
TOLERANCES: Final = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.05, "int8": 0.5}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two answers to one request differ.

    first_token: the first place at which generated tokens differ    largest: of the numbers that both have
    """

    agrees: bool
    first_token: int | None = None
    largest: float = 0.0


def comparable(request: AnyRequest) -> AnyRequest:
    """Return the request as it can be compared: greedy, since no two engines draw alike, with log-probabilities.

    Not with those of a text that is held to a grammar, which vLLM cannot give.
    """
    if not isinstance(request, Request):
        return request
    logprobs = request.constraint is None
    return replace(request, sampling=replace(request.sampling, temperature=0.0, logprobs=logprobs))


def compare(ours: AnyResult, theirs: AnyResult, tolerance: float) -> Difference:
    """Return the difference of two answers to the same request.

    Tokens, the likeliest label and the likeliest span must be the same, likelihoods of a text and embeddings within the
    tolerance. Two failures agree, whatever their words.
    """
    if isinstance(ours, Failed) or isinstance(theirs, Failed):
        return Difference(agrees=isinstance(ours, Failed) and isinstance(theirs, Failed))
    if isinstance(ours, Generated) and isinstance(theirs, Generated):
        return _of_tokens(ours, theirs)
    numbers = _numbers(ours), _numbers(theirs)
    largest = _largest(*numbers)
    if isinstance(ours, Scored | Embedded):
        return Difference(agrees=largest <= tolerance, largest=largest)
    # Near ties may fall either way: a decision differs only where the numbers are further apart than the tolerance.
    same = [_same_choice(a, b, tolerance) for a, b in zip(*numbers, strict=True)]
    return Difference(agrees=all(same) and math.isfinite(largest), largest=largest)


def _of_tokens(ours: Generated, theirs: Generated) -> Difference:
    pairs = zip(ours.token_ids, theirs.token_ids, strict=False)
    common = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
    if common is None and len(ours.token_ids) != len(theirs.token_ids):
        common = min(len(ours.token_ids), len(theirs.token_ids))
    until = len(ours.token_ids) if common is None else common
    largest = _largest([(ours.logprobs or ())[:until]], [(theirs.logprobs or ())[:until]])
    agrees = common is None and ours.finish_reason == theirs.finish_reason
    return Difference(agrees=agrees, first_token=common, largest=largest)


def _numbers(result: AnyResult) -> list[Sequence[float]]:
    match result:
        case Labelled():
            # Relative log-likelihoods may all be off by the same number.
            highest = max(result.label_logprobs)
            return [[value - highest for value in result.label_logprobs]]
        case Classified():
            return [result.logits]
        case SpanLogits():
            return [result.start_logits, result.end_logits]
        case Scored():
            return [result.token_logprobs]
        case Embedded():
            return [result.vector]
        case _:
            return []


def _largest(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Return the largest difference, infinite where there are not as many numbers."""
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        return math.inf
    differences = (abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))
    return max(differences, default=0.0)


def _same_choice(ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> bool:
    one, other = _highest(ours), _highest(theirs)
    return one == other or (len(ours) == len(theirs) and abs(ours[one] - ours[other]) <= tolerance)


def _highest(numbers: Sequence[float]) -> int:
    return max(range(len(numbers)), key=numbers.__getitem__)


@dataclass
class Agreement:
    """The differences of many rows, added up."""

    tolerance: float
    num_rows: int = 0
    num_agreeing: int = 0
    num_failed: tuple[int, int] = (0, 0)
    largest: float = 0.0
    first: tuple[int, str] | None = None  # the earliest place at which tokens differ, and the row
    differing: list[str] = field(default_factory=list)

    def add(self, key: str, ours: Sequence[AnyResult], theirs: Sequence[AnyResult]) -> None:
        """Take one row's answers by both engines."""
        found = [compare(a, b, self.tolerance) for a, b in zip(ours, theirs, strict=True)]
        self.num_rows += 1
        failed = [any(isinstance(one, Failed) for one in side) for side in (ours, theirs)]
        self.num_failed = (self.num_failed[0] + failed[0], self.num_failed[1] + failed[1])
        self.largest = max([self.largest, *(one.largest for one in found)])
        if all(one.agrees for one in found):
            self.num_agreeing += 1
        else:
            self.differing.append(key)
        for one in found:
            if one.first_token is not None and (self.first is None or one.first_token < self.first[0]):
                self.first = (one.first_token, key)

    @property
    def share(self) -> float:
        """Return the share of rows that agree."""
        return self.num_agreeing / self.num_rows if self.num_rows else 1.0

    def text(self, names: Sequence[str], shown: Callable[[str], str] = str) -> str:
        """Return the lines that say it all; rows are named by their keys."""
        first = "none" if self.first is None else f"token {self.first[0] + 1} of row {shown(self.first[1])}"
        lines = [
            f"rows that agree: {self.num_agreeing} of {self.num_rows} ({self.share:.1%})",
            f"first differing token: {first}",
            f"largest difference of a log-probability, logit or coordinate: {self.largest:.2g}",
            f"failed rows: {names[0]} {self.num_failed[0]}, {names[1]} {self.num_failed[1]}",
        ]
        if self.differing:
            more = f" and {len(self.differing) - 10} more" if len(self.differing) > 10 else ""
            lines.append(f"rows that differ: {', '.join(map(shown, self.differing[:10]))}{more}")
        return "\n".join(lines)
