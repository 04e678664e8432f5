"""CpuCall: what the attention kernel is told about a step, and the call itself; `address_of` for every kernel.

Shape letters: see gptj_batch.engine.
"""

import ctypes
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from gptj_batch.engine.cpu_kernels.build import load_library


def address_of(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return where a tensor's numbers stand, row after row; the caller keeps it alive."""
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class LayerArguments(ctypes.Structure):
    """What the kernel is told; `LayerArguments` in kernels.cpp is the same."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("num_writes", "heads", "channels", "rotary")),
        *((name, ctypes.c_int32) for name in ("block_tokens", "num_items", "max_keys", "threads")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int64) for name in ("qkv_stride", "out_stride")),
        *((name, ctypes.c_void_p) for name in ("qkv", "out", "keys", "values", "cosine", "sine")),
        *((name, ctypes.c_void_p) for name in ("writes", "tables", "runs", "items", "mask")),
    ]


class CpuCall:
    """Hold what the kernel reads in every layer of a step; kernels.cpp says what each number of these means.

    runs: rows that belong to one sequence, eight numbers each    items: parts of runs, three
    writes: rows whose keys and values go to one tile, three    tables: the runs' block tables
    mask: bytes, (any,), what branches of trees see    read: the rows that are read behind the last layer; None for all
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        block_size_tokens: int,
        dtype: torch.dtype,
        runs: list[Ordered[int]],
        items: list[Ordered[int]],
        writes: list[Ordered[int]],
        tables: list[int],
        max_keys: int,
        mask: Tensor | None = None,
        read: Ordered[int] | None = None,
    ) -> None:
        self._attend = load_library(dtype).gptj_attend
        self._dtype = dtype
        numbers = {"runs": runs, "writes": writes, "tables": tables}
        # The kernel has their addresses only.
        self._held = {name: torch.tensor(values, dtype=torch.int32) for name, values in numbers.items()}
        self._items = torch.tensor(items, dtype=torch.int32)
        self._items_read = self._items if read is None else _only_read(items, runs, set(read))
        if mask is not None:
            self._held["mask"] = mask
        self._told = LayerArguments(
            num_writes=len(writes),
            heads=num_heads,
            channels=head_dim,
            block_tokens=block_size_tokens,
            max_keys=max_keys,
            threads=torch.get_num_threads(),
            scale=head_dim**-0.5,
            **{name: values.data_ptr() for name, values in self._held.items()},
        )

    def run(
        self,
        projected: Tensor,
        mixed: Tensor,
        keys: Tensor,
        values: Tensor,
        cos: Tensor,
        sin: Tensor,
        only_read: bool = False,
    ) -> None:
        """Store a layer's keys and values, and attend, with `only_read` for the rows that are read.

        projected: (T', 3 * E)    mixed: (T', E), written to    keys, values: (N, H, P, D), whole vectors of channels
        cos, sin: (T', R // 2), float32
        """
        assert projected.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
        assert projected.dtype == keys.dtype == self._dtype and cos.dtype == sin.dtype == torch.float32
        told, items = self._told, self._items_read if only_read else self._items
        told.items, told.num_items = items.data_ptr(), len(items)
        told.rotary = 2 * cos.shape[-1]
        told.qkv_stride, told.out_stride = projected.stride(0), mixed.stride(0)
        told.qkv, told.out = projected.data_ptr(), mixed.data_ptr()
        told.keys, told.values = keys.data_ptr(), values.data_ptr()
        told.cosine, told.sine = cos.data_ptr(), sin.data_ptr()
        self._attend(ctypes.byref(told))


def _only_read(items: list[Ordered[int]], runs: list[Ordered[int]], read: set[int]) -> Tensor:
    """Return the parts of items from their first query that is read to their last, (any, 3), int32.

    A row with a slot stays: its key and value are stored where it attends.
    """
    parts: list[Ordered[int]] = []
    for index, first, count in items:
        row, *_, slot = runs[index]
        queries = [query for query in range(first, first + count) if slot >= 0 or row + query in read]
        if queries:
            parts.append((index, queries[0], queries[-1] - queries[0] + 1))
    return torch.tensor(parts, dtype=torch.int32).view(-1, 3)
