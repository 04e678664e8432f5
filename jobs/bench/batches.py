"""Batches: how rows are put together for a peer that wants rectangles, and how these are padded.

Shape letters: B rows of a batch, W the longest of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.bench.work import Work, WorkRow


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How many rows a batch has, and whether rows of like length are put together."""

    size: int
    is_sorted: bool


def batches(rows: Sequence[WorkRow], options: BatchOptions) -> Iterator[list[int]]:
    """Yield the indices of the rows of each batch; sorted, the longest come first."""
    order = list(range(len(rows)))
    if options.is_sorted:
        order.sort(key=lambda index: -len(rows[index].prompt))
    for first in range(0, len(order), options.size):
        yield order[first : first + options.size]


def sample(work: Work, options: BatchOptions, num_batches: int) -> Work:
    """Return the rows of a few batches, evenly spaced, so that short and long ones are among them."""
    all_batches = list(batches(work.rows, options))
    number = min(num_batches, len(all_batches))
    chosen = [all_batches[int((place + 0.5) * len(all_batches) / number)] for place in range(number)]
    return Work(kind=work.kind, rows=[work.rows[index] for batch in chosen for index in batch])


@dataclass(frozen=True)
class Padded:
    """A rectangle of token ids.

    input_ids, mask, position_ids: (B, W), int64
    """

    input_ids: Tensor
    mask: Tensor
    position_ids: Tensor


def pad_left(prompts: Sequence[Sequence[int]], first_position: int = 0) -> Padded:
    """Put the prompts side by side so that all end together; the first token of each has `first_position`."""
    width = max(map(len, prompts))
    input_ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return Padded(input_ids, mask, (mask.cumsum(1) - 1).clamp(min=0) + first_position)


def pad_right(prompts: Sequence[Sequence[int]], pad_token_id: int = 0) -> Padded:
    """Put the prompts side by side so that all begin together."""
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = torch.tensor(prompt)
        mask[row, : len(prompt)] = 1
    return Padded(input_ids, mask, torch.arange(width).expand(len(prompts), width))
