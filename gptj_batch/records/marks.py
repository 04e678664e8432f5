"""Marks: where in a text file every so many rows begin, so that a unit's rows are found without reading the others."""

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gptj_batch.records.text import Records

_STEP = 256
_MAX_MARKS = 1 << 17  # a megabyte a file: beyond, marks stand twice as far apart


@dataclass(frozen=True)
class Marks:
    """Where rows 0, step, 2 x step, ... begin, in bytes behind the decompression."""

    step: int
    offsets: NDArray[np.int64] = field(repr=False, compare=False)

    def before(self, row: int) -> tuple[int, int]:
        """Return the number and the place of the last marked row that is not behind `row`."""
        index = min(row // self.step, len(self.offsets) - 1)
        return index * self.step, int(self.offsets[index])

    def thinned(self, num_rows: int, stop: int) -> "Marks":
        """Return the marks that are needed to find rows 0, num_rows, 2 x num_rows, ... before `stop`."""
        step = self.step * max(num_rows // self.step, 1)
        # Only where units begin at marks can the others go: between two of them, all rows would be read.
        return self if num_rows % self.step else Marks(step, self.offsets[:: step // self.step][: -(-stop // step)])


class MarkMaker:
    """Collects the marks of a file whose records pass by in order."""

    def __init__(self) -> None:
        self._step = _STEP
        self._offsets = array("q")

    def add(self, records: Records) -> None:
        """Mark the records whose number is a multiple of the step."""
        first = -records.row % self._step
        self._offsets.extend((records.offset + records.starts[first :: self._step]).tolist())
        while len(self._offsets) > _MAX_MARKS:
            self._offsets, self._step = self._offsets[::2], 2 * self._step

    def marks(self) -> Marks:
        """Return the marks made so far."""
        return Marks(self._step, np.array(self._offsets, dtype=np.int64))
