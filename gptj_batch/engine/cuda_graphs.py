"""DecodeGraphs: a decoding step recorded once for each batch size, and played back.

A step of a 6 B model is some 200 launches, which take the host longer than the device needs for a small batch. Steps in
which every row decodes are filled up to the next recorded size; all others run as they are.

Shape letters: see gptj_batch.engine.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor


class Decoded(NamedTuple):
    """What a decoding step gives.

    logits: (B, V)    picks: (2, B), int64: the likeliest token, and 1 where the row's logits are finite. A step whose
        sequences are all plain greedy needs no more than this on the host.
    """

    logits: Tensor
    picks: Tensor


@dataclass(frozen=True, kw_only=True)
class DecodeInputs:
    """What a decoding step reads: tensors that stay where they are.

    token_ids, positions: (B,), int64    slots, lengths: (B,), int32    tables: (B, M), int32
    A row that is none has slot -1 and length 0.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    tables: Tensor
    lengths: Tensor

    @classmethod
    def empty(cls, num_rows: int, num_blocks: int, device: torch.device) -> Self:
        """Make room for so many rows of so many blocks; none of them is one yet."""
        return cls(
            token_ids=torch.zeros(num_rows, dtype=torch.int64, device=device),
            positions=torch.zeros(num_rows, dtype=torch.int64, device=device),
            slots=torch.full((num_rows,), -1, dtype=torch.int32, device=device),
            tables=torch.zeros(num_rows, num_blocks, dtype=torch.int32, device=device),
            lengths=torch.zeros(num_rows, dtype=torch.int32, device=device),
        )

    def head(self, num_rows: int) -> Self:
        """Return the first rows, in the same memory."""
        return type(self)(**{field.name: getattr(self, field.name)[:num_rows] for field in fields(self)})

    def fill(self, step: "DecodeInputs") -> None:
        """Take a step's rows and tables, which may be narrower; the rows behind them become none.

        Blocks behind a row's length are never looked at, so what stood there may stay.
        """
        num_rows, num_blocks = step.tables.shape
        for name in ("token_ids", "positions", "slots", "lengths"):
            getattr(self, name)[:num_rows].copy_(getattr(step, name))
        self.tables[:num_rows, :num_blocks].copy_(step.tables)
        self.slots[num_rows:].fill_(-1)
        self.lengths[num_rows:].zero_()


class Capture(Protocol):
    """Record what a function does to the device."""

    def __call__(self, function: Callable[[], Decoded]) -> tuple[Callable[[], None], Decoded]:
        """Return what does it again, and the tensors in which each time's results appear."""
        ...


class DecodeGraphs:
    """Hold a recording for each of a few batch sizes."""

    def __init__(
        self, function: Callable[[DecodeInputs], Decoded], inputs: DecodeInputs, max_running: int, capture: Capture
    ) -> None:
        """Record `function` for all sizes up to `max_running`, the largest first: the others fit into its memory."""
        assert len(inputs.lengths) >= max_running, "the inputs must hold the largest batch"
        self.sizes = batch_sizes(max_running)
        self._inputs = inputs
        self._recorded = {
            size: capture(partial(function, inputs.head(size))) for size in sorted(self.sizes, reverse=True)
        }

    def holds(self, num_rows: int) -> bool:
        """Say whether a step of so many rows fits into the largest recording."""
        return num_rows <= self.sizes[-1]

    def run(self, step: DecodeInputs) -> Decoded:
        """Decode a step that fits; the results are overwritten by the next one."""
        num_rows = len(step.lengths)
        size = self.sizes[bisect_left(self.sizes, num_rows)]
        self._inputs.head(size).fill(step)
        replay, decoded = self._recorded[size]
        replay()
        return Decoded(decoded.logits[:num_rows], decoded.picks[:, :num_rows])


def batch_sizes(max_running: int) -> list[int]:
    """Return the batch sizes worth a recording, in order, `max_running` the last of them.

    Rows that are none cost no attention, and products read all weights whatever their number: past 64 rows the steps
    may be wide, which saves memory and time at the start.
    """
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_running, 32)]
    return [*(size for size in steps if size < max_running), max_running]


def pick(logits: Tensor) -> Decoded:
    """Choose the likeliest tokens on the device, the lowest index on ties, and check the logits.

    logits: (B, V)
    """
    highest, token_ids = logits.max(-1)
    is_finite = highest.isfinite() & logits.amin(-1).isfinite()
    return Decoded(logits, torch.stack((token_ids, is_finite.long())))
