"""KVCache: the memory that holds keys and values, in blocks.

Shape letters: see gptj_batch.engine. A page is one head's part of a block: P tokens of D channels, contiguous.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gptj_batch.engine.block_tables import Copy

COPIES_AT_ONCE = 16
"""A block of GPT-J 6B holds 7 MiB of keys in half precision, and as much of values: so many pass through at a time."""


class KVCache:
    """Keys and values of all layers, each (layers, N, H, P, D).

    Head-major pages, since a head reads all its keys and values but never another head's: gathering whole pages gives
    batched matrix products their operands without a transposition.
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
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        # One row a token, and one row a page: the same memory under two names each.
        self._key_rows = self._keys.view(num_layers, -1, head_dim)
        self._value_rows = self._values.view(num_layers, -1, head_dim)
        self._key_pages = self._keys.view(num_layers, num_blocks * num_heads, -1)
        self._value_pages = self._values.view(num_layers, num_blocks * num_heads, -1)

    def clear(self, blocks: Tensor) -> None:
        """Forget what the blocks' last owners left.

        Their unfilled ends are read too, with weight 0, and 0 times a left-over infinity would be NaN: without this, a
        request whose values overflowed could spoil the next owner of its blocks. Keys are masked, so they may stay.

        blocks: (any,), int64
        """
        self._values.index_fill_(1, blocks, 0.0)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy the first tokens of blocks into others, in all layers, and forget what else those held (see `clear`).

        No block is a source and a destination.
        """
        places = torch.arange(self.block_size_tokens, device=self.device)
        for first in range(0, len(copies), COPIES_AT_ONCE):
            some = torch.tensor(copies[first : first + COPIES_AT_ONCE], device=self.device)
            sources, destinations, num_tokens = some.unbind(1)
            self._keys.index_copy_(1, destinations, self._keys.index_select(1, sources))
            values = self._values.index_select(1, sources)
            values.masked_fill_((places >= num_tokens[:, None])[None, :, None, :, None], 0.0)
            self._values.index_copy_(1, destinations, values)

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store a layer's keys and values of the step's tokens.

        slots: (T * H,), int64, see `token_slots`    key, value: (T, H, D)
        """
        self._key_rows[layer].index_copy_(0, slots, key.reshape(-1, self.head_dim))
        self._value_rows[layer].index_copy_(0, slots, value.reshape(-1, self.head_dim))

    def read(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Gather a layer's keys and values.

        pages: (B * H * M,), int64, see `table_pages`    returns: two of (B * H * M, P * D)
        """
        return self._key_pages[layer].index_select(0, pages), self._value_pages[layer].index_select(0, pages)

    def token_slots(self, blocks: Tensor, offsets: Tensor) -> Tensor:
        """Return where each head's part of each token goes.

        blocks, offsets: (T,), int64, a token's block and its place in there    returns: (T * H,)
        """
        heads = torch.arange(self.num_heads, device=self.device)
        pages = blocks[:, None] * self.num_heads + heads
        return (pages * self.block_size_tokens + offsets[:, None]).flatten()

    def table_pages(self, tables: Tensor) -> Tensor:
        """Return the pages behind block tables, head by head, as `read` wants them.

        tables: (B, M), int64    returns: (B * H * M,)
        """
        heads = torch.arange(self.num_heads, device=self.device)
        return (tables[:, None, :] * self.num_heads + heads[:, None]).flatten()


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
