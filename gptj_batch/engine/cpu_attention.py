"""CpuPagedAttention: attention over the KV cache by the C++ kernels.

Shape letters: see gptj_batch.engine.
"""

import ctypes
from collections.abc import Sequence as Ordered
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from gptj_batch.engine.body import FusedAttend
from gptj_batch.engine.cpu_kernels.build import load_library
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.step_batch import Span, StepBatch

TILE_TOKENS: Final = 16
MAX_QUERIES: Final = 6  # that the kernel takes at once; `QUERIES` there
DTYPES: Final = (torch.float32, torch.bfloat16)
NONE: Final = -1


class LayerArguments(ctypes.Structure):
    """What the kernel is told; `LayerArguments` in kernels.cpp is the same."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "num_writes", "heads", "channels", "rotary")),
        *((name, ctypes.c_int32) for name in ("block_tokens", "num_items", "max_keys", "threads")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int64) for name in ("qkv_stride", "out_stride")),
        *((name, ctypes.c_void_p) for name in ("qkv", "out", "keys", "values", "cosine", "sine")),
        *((name, ctypes.c_void_p) for name in ("writes", "tables", "runs", "items", "mask")),
    ]


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
        self._attend = load_library().gptj_attend

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
        return _CpuStep(
            self._cache,
            self._head_dim,
            self._attend,
            writes=_int32(writes),
            tables=_int32(tables),
            runs=_int32(runs),
            items=_int32(items),
            max_keys=max(span.stop for span in batch.spans),
        )


class _CpuStep:
    """Hold what the kernel reads in every layer of a step."""

    def __init__(
        self,
        cache: KVCache,
        head_dim: int,
        attend: "ctypes._NamedFuncPointer",
        *,
        writes: Tensor,
        tables: Tensor,
        runs: Tensor,
        items: Tensor,
        max_keys: int,
    ) -> None:
        self._cache = cache
        self._attend = attend
        self._width = cache.num_heads * head_dim
        self._held = (writes, tables, runs, items)  # the kernel has their addresses only
        self._arguments = LayerArguments(
            is_bfloat16=cache.dtype == torch.bfloat16,
            num_writes=len(writes),
            heads=cache.num_heads,
            channels=head_dim,
            block_tokens=cache.block_size_tokens,
            num_items=len(items),
            max_keys=max_keys,
            threads=torch.get_num_threads(),
            scale=head_dim**-0.5,
            writes=writes.data_ptr(),
            tables=tables.data_ptr(),
            runs=runs.data_ptr(),
            items=items.data_ptr(),
        )

    def __call__(self, layer: int, projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend in one layer; see `FusedAttend`."""
        mixed = projected.new_empty(len(projected), self._width)
        assert projected.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
        assert projected.dtype == self._cache.dtype and cos.dtype == sin.dtype == torch.float32
        told = self._arguments
        told.rotary = 2 * cos.shape[-1]
        told.qkv_stride, told.out_stride = projected.stride(0), mixed.stride(0)
        told.qkv, told.out = projected.data_ptr(), mixed.data_ptr()
        told.keys, told.values = self._cache.keys[layer].data_ptr(), self._cache.values[layer].data_ptr()
        told.cosine, told.sine = cos.data_ptr(), sin.data_ptr()
        self._attend(ctypes.byref(told))
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


def _int32(values: Ordered[int] | Ordered[Ordered[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
