"""The Arrow types of JSON values, as all lines of a file have them: nothing is guessed, no value is changed.

Text stays text (also where it looks like a date), whole numbers are int64 (uint64 where they need it), numbers with a
fraction make the column double, a list takes one type for its items, an object is a struct.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from gptj_batch.errors import shorten
from gptj_batch.records.text import BadTextError

_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a fraction",
    str: "a text",
    list: "a list",
    dict: "an object",
}
_EXACT_IN_DOUBLE = 2**53
Where = Callable[[int], int]  # from the place of a value to the number of its line


class Kinds:
    """What was seen of one column, or of one place in nested values.

    name: for messages, such as "tags[]" or "author.name"
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: dict[type, int] = {}  # the first line with a value of each kind
        self._low, self._high = (0, 0), (0, 0)  # the extreme whole numbers, each with its line
        self._items: Kinds | None = None
        self._fields: dict[str, Kinds] = {}

    def see(self, values: Sequence[Any], where: Where) -> None:
        """Take note of values. Raises BadTextError where they and those before have no type in common."""
        kinds = set(map(type, values)) - {type(None)}
        new = kinds - self._lines.keys()
        first = {kind: next(i for i, value in enumerate(values) if type(value) is kind) for kind in new}
        for kind in sorted(new, key=first.__getitem__):
            self._lines[kind] = where(first[kind])
        self._check_kinds()
        if int in kinds:
            self._see_numbers(values, where)
        if list in kinds:
            self._see_items(values, where)
        if dict in kinds:
            see_fields(self._fields, values, where, f"{self._name}.")

    def _check_kinds(self) -> None:
        kinds = sorted(self._lines, key=self._lines.__getitem__)
        if len(kinds) > 1 and set(kinds) != {int, float}:
            one, other = kinds[0], next(kind for kind in kinds[1:] if {kinds[0], kind} != {int, float})
            raise BadTextError(
                f'line {self._lines[other]}: "{shorten(self._name, 60)}" is {_NAMES[other]}, and on line '
                f"{self._lines[one]} it is {_NAMES[one]}; write both alike (numbers as texts, for example)"
            )

    def _see_numbers(self, values: Sequence[Any], where: Where) -> None:
        numbers = [value if type(value) is int else 0 for value in values]
        if (low := min(numbers)) < self._low[0]:
            self._low = (low, where(numbers.index(low)))
        if (high := max(numbers)) > self._high[0]:
            self._high = (high, where(numbers.index(high)))

    def _see_items(self, values: Sequence[Any], where: Where) -> None:
        self._items = self._items or Kinds(f"{self._name}[]")
        lists = [value if type(value) is list else [] for value in values]
        items = [item for some in lists for item in some]
        ends = list(accumulate(map(len, lists)))
        self._items.see(items, lambda index: where(bisect_right(ends, index)))

    def type(self) -> pa.DataType:
        """Return the type that holds everything that was seen. Raises BadTextError for numbers that have none."""
        kinds = self._lines.keys()
        if not kinds:
            return pa.null()
        if float in kinds or int in kinds:
            return self._number_type(float in kinds)
        if list in kinds:
            return pa.list_(self._items.type() if self._items else pa.null())
        if dict in kinds:
            return pa.struct([(name, field.type()) for name, field in self._fields.items()])
        return pa.bool_() if bool in kinds else pa.string()

    def _number_type(self, with_fractions: bool) -> pa.DataType:
        (low, low_line), (high, high_line) = self._low, self._high
        if with_fractions:
            if max(-low, high) > _EXACT_IN_DOUBLE:
                raise self._too_large(
                    high_line if high > -low else low_line, "2^53, which a double cannot hold exactly"
                )
            return pa.float64()
        if low >= -(2**63) and high < 2**63:
            return pa.int64()
        if low < 0 or high >= 2**64:
            raise self._too_large(low_line if low < -(2**63) else high_line, "64 bits")
        return pa.uint64()

    def _too_large(self, line: int, limit: str) -> BadTextError:
        name = shorten(self._name, 60)
        return BadTextError(f'line {line}: "{name}" holds a whole number beyond {limit}; write it as a text')


def see_fields(fields: dict[str, Kinds], objects: Sequence[Any], where: Where, before: str = "") -> None:
    """Take note of every field of objects (other values are passed over), in the order in which fields come first."""
    places = [place for place, value in enumerate(objects) if type(value) is dict]
    for name in dict.fromkeys(name for place in places for name in objects[place]):
        if name not in fields:
            fields[name] = Kinds(before + name)
        fields[name].see([objects[place].get(name) for place in places], lambda index: where(places[index]))
