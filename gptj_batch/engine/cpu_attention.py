"""CpuPagedAttention: attention over the KV cache by the C++ kernels.

Shape letters: see gptj_batch.engine.
"""

from collections.abc import Sequence as Ordered
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from gptj_batch.engine.body import FusedAttend
from gptj_batch.engine.cpu_kernels.build import load_library
from gptj_batch.engine.cpu_kernels.call import CpuCall
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.step_batch import Span, StepBatch

TILE_TOKENS: Final = 16
MAX_QUERIES: Final = 6  # that the kernel takes at once; `QUERIES` there
DTYPES: Final = (torch.float32, torch.bfloat16)
NONE: Final = -1


def padded_head_dim(head_dim: int) -> int:
    """Return the channels that a token takes in the cache: whole vectors."""
    return -(-head_dim // TILE_TOKENS) * TILE_TOKENS


class CpuPagedAttention:
    """Attention without a gather: the kernel follows the block tables itself, and rotates on the way.

    A token's result does not depend, bit for bit, on what else is in the step, nor on how its context came into the
    cache. Raises KernelsUnavailable where the kernels cannot be built.
    """

    def __init__(self, cache: KVCache, head_dim: int) -> None:
        assert cache.block_size_tokens % TILE_TOKENS == 0, "a block is made of whole tiles"
        assert cache.head_dim == padded_head_dim(head_dim), "a token is made of whole vectors"
        assert cache.dtype in DTYPES and cache.device.type == "cpu", "the kernels know float32 and bfloat16, on a CPU"
        self._cache = cache
        self._head_dim = head_dim
        load_library(cache.dtype)

    def plan(self, batch: StepBatch) -> FusedAttend:
        """Prepare a step; see `PagedAttention`."""
        self._cache.copy(batch.copies)
        runs: list[Ordered[int]] = []
        items: list[Ordered[int]] = []
        writes: list[Ordered[int]] = []
        tables: list[int] = []
        for index, span in enumerate(batch.spans):
            slot = batch.slots[span.row] if span.num_rows == 1 else NONE
            runs.append((span.row, span.num_rows, span.start, len(tables), NONE, 0, 0, slot))
            tables += span.block_table
            items += [(index, *part) for part in query_parts(span.num_rows)]
            if span.num_rows > 1:
                writes += [(row, count, batch.slots[row]) for row, count in tile_parts(span)]
        call = CpuCall(
            num_heads=self._cache.num_heads,
            head_dim=self._head_dim,
            block_size_tokens=self._cache.block_size_tokens,
            dtype=self._cache.dtype,
            runs=runs,
            items=items,
            writes=writes,
            tables=tables,
            max_keys=max(span.stop for span in batch.spans),
            read=None if batch.read is None else batch.read.tolist(),
        )
        return _CpuStep(call, self._cache, self._cache.num_heads * self._head_dim)


class _CpuStep:
    """Attend in every layer of one step."""

    def __init__(self, call: CpuCall, cache: KVCache, width: int) -> None:
        self._call = call
        self._cache = cache
        self._width = width

    def __call__(self, layer: int, projected: Tensor, cos: Tensor, sin: Tensor, *, only_read: bool = False) -> Tensor:
        """Attend in one layer; see `FusedAttend`."""
        mixed = projected.new_empty(len(projected), self._width)
        self._call.run(projected, mixed, self._cache.keys[layer], self._cache.values[layer], cos, sin, only_read)
        return mixed


def tile_parts(span: Span) -> list[tuple[int, int]]:
    """Cut a span's rows into parts (first, count), each of which goes to one tile."""
    first_border = span.start + TILE_TOKENS - span.start % TILE_TOKENS
    borders = [span.start, *range(first_border, span.stop, TILE_TOKENS), span.stop]
    offset = span.row - span.start
    return [(first + offset, stop - first) for first, stop in pairwise(borders)]


def query_parts(num_queries: int) -> list[tuple[int, int]]:
    """Cut queries into parts (first, count) of about equal size that the kernel takes at once."""
    num_parts = -(-num_queries // MAX_QUERIES)
    borders = [num_queries * part // num_parts for part in range(num_parts + 1)]
    return [(first, stop - first) for first, stop in pairwise(borders)]
