"""Attention over whole prompts on a GPU, by what torch offers: nothing of them stands in the cache yet.

Shape letters: see gptj_batch.engine.
"""

import inspect
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Prompts that lie side by side in a step.

    rows: their place in it    lengths: of each    borders: (prompts + 1,), int32, where each begins, and the end
    """

    rows: slice
    lengths: list[int]
    borders: Tensor

    @classmethod
    def of(cls, spans: Ordered[tuple[int, int]], device: torch.device) -> "Spans":
        """Take adjacent (first row, row behind the last)."""
        lengths = [stop - first for first, stop in spans]
        borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(rows=slice(spans[0][0], spans[-1][1]), lengths=lengths, borders=borders)


class WholePrompts(Protocol):
    """Let every token attend to its own prompt, up to itself."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
        """query, key, value: (rows of `spans`, H, D)    returns: the same shape."""
        ...


def one_by_one(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
    """Attend prompt by prompt, by `scaled_dot_product_attention`: it works everywhere, with a launch for each.

    query, key, value: (rows of `spans`, H, D)    returns: the same shape
    """
    mixed = []
    for parts in zip(*(x.split(spans.lengths) for x in (query, key, value)), strict=True):
        queries, keys, values = (part.transpose(0, 1)[None] for part in parts)
        mixed.append(F.scaled_dot_product_attention(queries, keys, values, is_causal=True)[0].transpose(0, 1))
    return torch.cat(mixed)


class Together:
    """Attend to all prompts in one launch, by torch's `varlen_attn`: Flash Attention, 16-bit dtypes, CUDA only."""

    def __init__(self) -> None:
        """Find it; raises ImportError where this torch has none."""
        from torch.nn.attention.varlen import varlen_attn

        self._attend = varlen_attn
        # torch 2.10 said is_causal, 2.11 and later window_size.
        by_window = "window_size" in inspect.signature(varlen_attn).parameters
        self._causal = {"window_size": (-1, 0)} if by_window else {"is_causal": True}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
        """query, key, value: (rows of `spans`, H, D)    returns: the same shape."""
        longest = max(spans.lengths)
        # Its scale is 1 / sqrt(D) unless told otherwise; that can be told only since torch 2.11.
        mixed = self._attend(query, key, value, spans.borders, spans.borders, longest, longest, **self._causal)
        assert isinstance(mixed, Tensor)
        return mixed
