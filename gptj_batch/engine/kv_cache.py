"""KVCache: the memory that holds keys and values, in blocks.

Shape letters: see gptj_batch.engine. A page is one head's part of a block. How the P tokens of D channels stand in it
is up to the attention that writes and reads it.
"""

import math
import mmap
import os
from collections.abc import Sequence as Ordered
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from gptj_batch.engine.block_tables import Copy

COPIES_AT_ONCE = 16
"""A block of GPT-J 6B holds 7 MiB of keys in half precision, and as much of values: so many pass through at a time."""


class KVCache:
    """Keys and values of all layers, each (layers, N, H, P, D).

    Head-major pages, since a head reads all its keys and values but never another head's.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_heads: int,
        block_size_tokens: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, num_blocks, num_heads, block_size_tokens, head_dim)
        self.num_heads = num_heads
        self.block_size_tokens = block_size_tokens
        self.head_dim = head_dim
        self.dtype = dtype
        self.device = device
        self.keys = _empty(shape, dtype, device)
        self.values = _empty(shape, dtype, device)

    def clear(self, blocks: Ordered[int]) -> None:
        """Forget the values that the blocks' last owners left.

        An attention that reads whole blocks gives unfilled places the weight 0, and 0 times a left-over infinity would
        be NaN: without this, a request whose values overflowed could spoil the next owner of its blocks.
        """
        if blocks:
            self.values.index_fill_(1, torch.tensor(blocks, device=self.device), 0.0)

    def copy(self, copies: Ordered[Copy]) -> None:
        """Copy blocks into others, in all layers; no block is a source and a destination."""
        for first in range(0, len(copies), COPIES_AT_ONCE):
            some = torch.tensor(copies[first : first + COPIES_AT_ONCE], device=self.device)
            sources, destinations, _ = some.unbind(1)
            for memory in (self.keys, self.values):
                memory.index_copy_(1, destinations, memory.index_select(1, sources))

    def clear_behind(self, copies: Ordered[Copy]) -> None:
        """Forget the values behind the tokens that were meant when blocks were copied (see `clear`).

        For an attention in whose pages token stands after token.
        """
        if copies:
            _, destinations, num_tokens = torch.tensor(copies, device=self.device).unbind(1)
            is_behind = torch.arange(self.block_size_tokens, device=self.device) >= num_tokens[:, None]
            rows, places = is_behind.nonzero(as_tuple=True)
            self.values[:, destinations[rows], :, places] = 0.0


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory that nothing was written to; on a CPU in large pages of the operating system where it has them.

    Decoding reads 4 KB here and 4 KB there: with small pages each is a miss in the address cache, and a read of random
    tiles 1.2 to 1.4 times slower.
    """
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def bytes_per_token(num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Return what one token takes in the KV cache: a key and a value in every head of every layer."""
    return 2 * num_layers * num_heads * head_dim * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Return how much memory can still be taken on `device`; on a CPU within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limit, used = _read_number("/sys/fs/cgroup/memory.max"), _read_number("/sys/fs/cgroup/memory.current")
    in_container = limit - used if limit is not None and used is not None else None
    on_host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith("MemAvailable:"):
            on_host = int(line.split()[1]) * 1024
    return on_host if in_container is None else min(on_host, in_container)


def _read_number(path: str) -> int | None:
    """Return the number in a file; None where there is no such file, or it says "max"."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
