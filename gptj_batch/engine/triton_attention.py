"""Attention over pages on a GPU: what the Triton kernels are given, for queries that decode and for prompts.

Nothing here waits for the device, and grids follow from shapes alone, so that a CUDA graph can hold all of it.
Importing this module needs triton.

Shape letters: see gptj_batch.engine.
"""

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from gptj_batch.engine.triton_kernels import decode_kernel, join_kernel, prefill_kernel, rotate_and_write_kernel

# A worker of the decoding kernel takes so many tokens at a time. Fixed, never fitted to the batch: see `decode_kernel`.
SPLIT_TOKENS = 256
# Bytes of keys that one tile of the decoding kernel holds: at head size 256 in 16 bits, 16 tokens. Compiled for sm_90
# that takes 116 registers a thread and 33 KB, so that 4 programs share a multiprocessor with 128 KB under way; twice
# the tile takes 218 registers for 2 programs with as much. No GPU was at hand to time them.
TILE_BYTES = 8 * 1024
MAX_TILE_TOKENS = 64
# Decoding fills the device when there are at least so many programs for each multiprocessor.
PROGRAMS_PER_PROCESSOR = 2


@dataclass(frozen=True)
class Pages:
    """One layer's part of the KV cache.

    keys, values: (N, H, P, D), contiguous
    """

    keys: Tensor
    values: Tensor

    @property
    def shape(self) -> dict[str, int]:
        """Return what the kernels are compiled for."""
        _, num_heads, page_tokens, head_dim = self.keys.shape
        return {
            "num_heads": num_heads,
            "page_tokens": page_tokens,
            "head_dim": head_dim,
            "padded_dim": count_padded(head_dim),
        }


def count_padded(head_dim: int) -> int:
    """Return the channels of a head as kernels see them: a power of two, and enough for a matrix product."""
    return max(16, 1 << (head_dim - 1).bit_length())


def decode(query: Tensor, pages: Pages, tables: Tensor, lengths: Tensor, output: Tensor, num_processors: int) -> None:
    """Let one token per row attend to its row's pages, its own key and value among them; a row of length 0 gets zeros.

    The result of a row does not depend on the other rows, bit for bit.

    query, output: (B, H, D), heads contiguous, rows at any stride    tables: (B, M), int32    lengths: (B,), int32
    num_processors: the device's multiprocessors, which decide how many programs share one row
    """
    (num_rows, num_heads, head_dim), shape = query.shape, pages.shape
    _check_heads(query, output)
    max_splits = -(-tables.shape[1] * shape["page_tokens"] // SPLIT_TOKENS)
    num_workers = count_workers(num_rows * num_heads, max_splits, num_processors)
    keeps_parts = num_workers > 1
    parts = (num_rows, num_heads, max_splits) if keeps_parts else (0,)
    highest, weight = torch.empty((2, *parts), dtype=torch.float32, device=query.device)
    mixed = torch.empty((*parts, shape["padded_dim"]), dtype=torch.float32, device=query.device)
    decode_kernel[num_heads, num_rows, num_workers](
        query,
        pages.keys,
        pages.values,
        tables,
        lengths,
        output,
        highest,
        weight,
        mixed,
        _scale(head_dim),
        query.stride(0),
        output.stride(0),
        tables.stride(0),
        max_splits,
        **shape,
        split_tokens=SPLIT_TOKENS,
        keeps_parts=keeps_parts,
        **decode_tile(shape["padded_dim"], query.dtype),
    )
    if keeps_parts:
        join_kernel[num_heads, num_rows](
            lengths,
            output,
            highest,
            weight,
            mixed,
            output.stride(0),
            max_splits,
            num_heads=num_heads,
            head_dim=head_dim,
            padded_dim=shape["padded_dim"],
            split_tokens=SPLIT_TOKENS,
            num_warps=2,
        )


def count_workers(num_programs: int, max_splits: int, num_processors: int) -> int:
    """Return how many programs share a row and head: 1 where those alone fill the device."""
    return max(1, min(max_splits, PROGRAMS_PER_PROCESSOR * num_processors // max(1, num_programs)))


def decode_tile(padded_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Return how the decoding kernel is compiled; by channels and dtype only, since it shows in the last bits."""
    tile_tokens = max(8, min(MAX_TILE_TOKENS, TILE_BYTES // (padded_dim * dtype.itemsize)))
    return {"tile_tokens": tile_tokens, "num_stages": 3, "num_warps": 4}


def rotate_and_write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    pages: Pages,
) -> None:
    """Rotate queries and keys in place, as `gptj_batch.model.rotary.rotate` would; put keys and values into pages.

    query, key, value: (T, H, D), heads contiguous, rows at any stride
    cos, sin: (T, R // 2), float32, contiguous    slots: (T,), block * P + place in it, or -1 for none
    """
    shape = pages.shape
    _check_heads(query, key, value)
    assert cos.is_contiguous() and sin.is_contiguous(), "a token's angles lie side by side, behind those before it"
    group_heads = min(triton.next_power_of_2(shape["num_heads"]), max(1, 1024 // shape["padded_dim"]))
    rotate_and_write_kernel[len(slots), triton.cdiv(shape["num_heads"], group_heads)](
        query,
        key,
        value,
        cos,
        sin,
        slots,
        pages.keys,
        pages.values,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        **shape,
        rotary_dim=2 * cos.shape[1],
        group_heads=group_heads,
        enable_fp_fusion=False,  # rounds each product, as torch does
    )


@dataclass(frozen=True)
class PrefillPlan:
    """Chunks of prompts that attend in one launch.

    chunks: (chunks, 3), int32: first row in the step, number of tokens, position of the first
    tiles: (tiles, 2), int32: chunk, first query; the longest looks come first
    tables: (chunks, M), int32
    """

    chunks: Tensor
    tiles: Tensor
    tables: Tensor


def plan_prefill(
    chunks: Ordered[tuple[int, int, int]], tables: Tensor, padded_dim: int, dtype: torch.dtype
) -> PrefillPlan:
    """Cut chunks into tiles of queries.

    chunks: (first row, number of tokens, position of the first) of each    tables: (chunks, M), int32
    """
    tile_queries = prefill_tile(padded_dim, dtype)["tile_queries"]
    tiles = [
        (chunk, first)
        for chunk, (_, num_tokens, _) in enumerate(chunks)
        for first in range(0, num_tokens, tile_queries)
    ]
    tiles.sort(key=lambda tile: chunks[tile[0]][2] + tile[1], reverse=True)
    chunks_there, tiles_there = (torch.tensor(x, dtype=torch.int32, device=tables.device) for x in (chunks, tiles))
    return PrefillPlan(chunks_there, tiles_there, tables)


def prefill(query: Tensor, pages: Pages, plan: PrefillPlan, output: Tensor) -> None:
    """Let each chunk's tokens attend to their sequence up to themselves; all their keys and values are in the pages.

    query, output: (T, H, D), heads contiguous, rows at any stride; only the chunks' rows are read and written
    """
    _check_heads(query, output)
    shape = pages.shape
    prefill_kernel[query.shape[1], len(plan.tiles)](
        query,
        pages.keys,
        pages.values,
        plan.tables,
        plan.chunks,
        plan.tiles,
        output,
        _scale(query.shape[2]),
        query.stride(0),
        output.stride(0),
        plan.tables.stride(0),
        **shape,
        # TF32 would keep 10 bits of a float32's 23.
        precision="ieee" if query.dtype == torch.float32 else "tf32",
        **prefill_tile(shape["padded_dim"], query.dtype),
    )


def prefill_tile(padded_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Return how the prompt kernel is compiled: no register is spilled, 99 KB of shared memory suffice (sm_80, 90)."""
    if dtype == torch.float32:
        return {"tile_queries": 32, "tile_tokens": 16, "num_stages": 2, "num_warps": 8}
    if padded_dim > 128:
        return {"tile_queries": 64, "tile_tokens": 32, "num_stages": 2, "num_warps": 4}
    return {"tile_queries": 64, "tile_tokens": 64, "num_stages": 2, "num_warps": 8}


def is_interpreted() -> bool:
    """Say whether the kernels are run by Triton's interpreter, on whatever device, instead of being compiled."""
    return not isinstance(decode_kernel, triton.JITFunction)


def _scale(head_dim: int) -> float:
    """Return the scale of scores whose softmax counts in powers of two."""
    return math.log2(math.e) / math.sqrt(head_dim)


def _check_heads(*tensors: Tensor) -> None:
    for x in tensors:
        assert x.stride(2) == 1 and x.stride(1) == x.shape[2], "a row's heads must lie side by side"
