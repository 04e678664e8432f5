"""TokenIndex: things that stand under a few tokens each, and the one whose tokens begin most like given ones."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
STRIDE = 32


class TokenIndex(Generic[T]):
    """Map tokens to things. Tokens are compared one by one: nothing rests on a hash."""

    __slots__ = ("_order", "_things")

    def __init__(self) -> None:
        self._things: dict[tuple[int, ...], T] = {}
        self._order: list[tuple[int, ...]] = []  # the keys, sorted

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, tokens: tuple[int, ...]) -> bool:
        return tokens in self._things

    def items(self) -> Iterator[tuple[tuple[int, ...], T]]:
        """Return all tokens, in order, and what stands under them."""
        return ((tokens, self._things[tokens]) for tokens in self._order)

    def get(self, tokens: tuple[int, ...]) -> T | None:
        """Return what stands under exactly these tokens."""
        return self._things.get(tokens)

    def add(self, tokens: tuple[int, ...], thing: T) -> None:
        """Put a thing under tokens, under which nothing stands yet."""
        assert tokens not in self._things, "two things stand under the same tokens"
        self._things[tokens] = thing
        insort(self._order, tokens)

    def remove(self, tokens: tuple[int, ...]) -> None:
        """Take away what stands under these tokens."""
        del self._things[tokens]
        del self._order[bisect_left(self._order, tokens)]

    def closest(self, tokens: tuple[int, ...]) -> tuple[T | None, int]:
        """Return what shares the most first tokens with `tokens`, and how many those are; None where that is none.

        In sorted order the longest common beginning is had by a neighbour of the place where `tokens` would stand.
        """
        best, most = None, 0
        if tokens and self._order:
            place = bisect_left(self._order, tokens)
            for key in self._order[max(place - 1, 0) : place + 1]:
                num_common = num_common_tokens(key, tokens)
                if num_common > most:
                    best, most = self._things[key], num_common
        return best, most


def num_common_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common."""
    count, start = min(len(first), len(second)), 0
    while start < count and first[start : start + STRIDE] == second[start : start + STRIDE]:
        start += STRIDE  # slices are compared in C
    return next((place for place in range(start, count) if first[place] != second[place]), count)
