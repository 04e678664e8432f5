"""Sequences with keys and values in scattered pages, for the tests of the Triton kernels, and the exact attention."""

import torch
from torch import Tensor


def exact(query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
    """Attend in float64, the first query being the token `start`.

    query: (Q, H, D)    key, value: (C, H, D)    returns: (Q, H, D)
    """
    scores = torch.einsum("qhd,chd->hqc", query.double(), key.double()) / query.shape[-1] ** 0.5
    hidden = torch.arange(len(key)) > torch.arange(start, start + len(query))[:, None]
    return torch.einsum("hqc,chd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value.double())


class Scattered:
    """Random queries, keys and values of sequences of the given lengths; all other places hold NaN.

    keys, values: (N, H, P, D)    tables: (B, M), their ends pointing at a page that is nobody's
    """

    def __init__(self, lengths: list[int], shape: tuple[int, int, int], dtype: torch.dtype, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        num_heads, page_tokens, head_dim = shape
        counts = [-(-length // page_tokens) for length in lengths]
        num_blocks, width = sum(counts) + 2, max(counts) + 1
        self.keys = torch.full((num_blocks, num_heads, page_tokens, head_dim), torch.nan, dtype=dtype)
        self.values = self.keys.clone()
        order = torch.randperm(num_blocks, generator=generator)
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.tables = order[-1].repeat(len(lengths), width).int()
        self.qkv = [torch.randn(3, n, num_heads, head_dim, generator=generator).to(dtype) for n in lengths]
        used = 0
        for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            self.tables[row, :count] = order[used : used + count]
            used += count
            slots = self.slots(row, 0, length)
            self.keys[slots // page_tokens, :, slots % page_tokens] = self.qkv[row][1]
            self.values[slots // page_tokens, :, slots % page_tokens] = self.qkv[row][2]

    def slots(self, row: int, first: int, stop: int) -> Tensor:
        """Return where the row's tokens stand: (stop - first,)."""
        page_tokens = self.keys.shape[2]
        places = torch.arange(first, stop)
        return self.tables[row, places // page_tokens].long() * page_tokens + places % page_tokens

    def last_queries(self) -> Tensor:
        """Return each row's last query, zeros for a row without tokens: (B, H, D)."""
        return torch.stack([qkv[0, -1] if qkv.shape[1] else torch.zeros_like(self.keys[0, :, 0]) for qkv in self.qkv])

    def exact(self, row: int, first: int, stop: int) -> Tensor:
        """Return what the row's queries first .. stop should get: (stop - first, H, D), float64."""
        query, key, value = self.qkv[row]
        return exact(query[first:stop], key[:stop], value[:stop], first)
