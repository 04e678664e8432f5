"""Passage: a text as bytes, with the places where an answer out of it may begin and end.

Words are runs of letters, digits and underscores. Marks (accents, variation selectors) and joined emoji belong to what
they follow, and a wide character (Chinese, Japanese, Korean) is a word of its own, as no spaces stand between those.
"""

import copy
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Self

from gptj_batch.errors import RecordError

ZERO_WIDTH_JOINER = "\u200d"


class Passage:
    """Hold where an answer may begin and end; all places are byte offsets into `data`.

    An answer neither begins nor ends in white space. With `whole_words` it cuts no word, and with `max_chars` it has at
    most so many characters.

    limits: each start, in order, with the last end of an answer from there
    ends: where an answer may end, in order

    Raises RecordError for a text that is no Unicode.
    """

    def __init__(self, text: str, *, whole_words: bool, max_chars: int | None) -> None:
        try:
            self.data = text.encode()
        except UnicodeEncodeError as error:
            raise RecordError(
                f"the text is not valid Unicode: there is half a surrogate pair at character {error.start}"
            ) from None
        offsets = [0]
        for char in text:
            offsets.append(offsets[-1] + len(char.encode()))
        num_chars = len(text)
        is_space = [char.isspace() for char in text]
        may_cut = [not whole_words or is_border(text, place) for place in range(num_chars + 1)]
        end_chars = [place for place in range(1, num_chars + 1) if may_cut[place] and not is_space[place - 1]]
        self.limits: dict[int, int] = {}
        for place in range(num_chars):
            if may_cut[place] and not is_space[place]:
                index = bisect_right(end_chars, num_chars if max_chars is None else place + max_chars) - 1
                if index >= 0 and end_chars[index] > place:
                    self.limits[offsets[place]] = offsets[end_chars[index]]
        self.ends = [offsets[place] for place in end_chars]
        # Behind an answer white space may have been generated already.
        self._ends_or_space_behind = set(self.ends)
        for place in range(1, num_chars + 1):
            if is_space[place - 1] and offsets[place - 1] in self._ends_or_space_behind:
                self._ends_or_space_behind.add(offsets[place])
        self._char_of = dict(zip(offsets, range(num_chars + 1), strict=True))

    def may_end(self, place: int) -> bool:
        """Say whether an answer ends here, white space at its end aside."""
        return place in self._ends_or_space_behind

    def last_end(self, start: int, stop: int) -> int | None:
        """Return where the longest answer within [start, stop) ends; None where there is none."""
        index = bisect_right(self.ends, stop) - 1
        return self.ends[index] if index >= 0 and self.ends[index] > start else None

    def next_end(self, place: int) -> int:
        """Return the first end of an answer from a place on, of which there is one."""
        return self.ends[bisect_left(self.ends, place)]

    def first(self, answer: bytes) -> tuple[int, int]:
        """Return the characters, [start, end), of the first place where these bytes are an answer."""
        start = next(self._places(answer))  # an answer that was found once is found again
        return self._char_of[start], self._char_of[start + len(answer)]

    def without(self, answer: bytes) -> Self:
        """Return what is left once `answer` is taken out: no character of any place where it is one."""
        taken = list(self._places(answer))
        rest = copy.copy(self)
        rest.limits = {}
        for start, limit in self.limits.items():
            index = bisect_right(taken, start)
            if index and start < taken[index - 1] + len(answer):
                continue
            stop = min(limit, taken[index]) if index < len(taken) else limit
            end = self.last_end(start, stop)
            if end is not None:
                rest.limits[start] = end
        return rest

    def _places(self, answer: bytes) -> Iterator[int]:
        """Yield every start from which on these bytes are an answer."""
        ends = set(self.ends)
        for start, limit in self.limits.items():
            end = start + len(answer)
            if end <= limit and end in ends and self.data.startswith(answer, start):
                yield start


def is_border(text: str, place: int) -> bool:
    """Say whether no word reaches across the place before character number `place`."""
    if place in (0, len(text)):
        return True
    before, behind = text[place - 1], text[place]
    if before.isspace() or behind.isspace():  # a mark behind white space belongs to nothing
        return True
    if unicodedata.category(behind).startswith("M") or ZERO_WIDTH_JOINER in (before, behind):
        return False
    return not (_in_word(text, place - 1) and _in_word(text, place)) or _is_wide(before) or _is_wide(behind)


def _in_word(text: str, place: int) -> bool:
    """Say whether a character is part of a word; a mark is if what it follows is."""
    while place > 0 and unicodedata.category(text[place]).startswith("M"):
        place -= 1
    return text[place].isalnum() or text[place] == "_"


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"
