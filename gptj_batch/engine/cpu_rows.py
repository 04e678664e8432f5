"""CpuRowAttention: attention of packed rows, with shared prefixes and label trees, by the C++ kernels.

A pass gets a cache of its own, of one layer: a row's keys and values are in the layout that the kernel reads best, and
rows that share a prefix read the same blocks of it. Where a prefix ends inside a block, each row begins with a copy of
that block, so that a row's tiles, and with them its result to the last bit, are the same whether it shares or not.

Shape letters: see gptj_batch.engine. Here N is the blocks of a pass, of one tile each.
"""

from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from gptj_batch.engine.body import FusedAttend
from gptj_batch.engine.cpu_attention import NONE, TILE_TOKENS, padded_head_dim, query_parts, tile_parts
from gptj_batch.engine.cpu_kernels.call import CpuCall
from gptj_batch.engine.packed_rows import PackedRows, RowSpan
from gptj_batch.engine.shared_prefix import SharedPrefix
from gptj_batch.engine.step_batch import Span


class CpuRowAttention:
    """Keep the memory of one layer's keys and values from pass to pass."""

    def __init__(self, num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self._head_dim = head_dim
        self._shape = (2, 0, num_heads, TILE_TOKENS, padded_head_dim(head_dim))
        self._memory = torch.empty(self._shape, dtype=dtype)

    def plan(self, packed: PackedRows) -> FusedAttend:
        """Prepare the attention of one pass; see `RowAttention`."""
        places = _Places(packed)
        if places.num_blocks > self._memory.shape[1]:
            shape = (2, places.num_blocks, *self._shape[2:])
            self._memory = torch.empty(shape, dtype=self._memory.dtype)
        return _CpuPass(packed, places, self._memory, self._head_dim)


class _Places:
    """Which blocks of a pass hold what.

    of_prefix: each prefix's blocks    tables: each row's, the prefix's whole ones among them
    shared: of each row, how many tokens it takes from a prefix    copies: (from, to), the blocks in which prefixes end
    """

    def __init__(self, packed: PackedRows) -> None:
        self.num_blocks = 0
        self.of_prefix: dict[SharedPrefix, list[int]] = {}
        self.tables: list[list[int]] = []
        self.shared: list[int] = []
        self.copies: list[tuple[int, int]] = []
        for prefix in [fed.prefix for fed in packed.fed] + [shared.share.prefix for shared in packed.shared]:
            if prefix not in self.of_prefix:
                self.of_prefix[prefix] = self._take(len(prefix.token_ids))
        for row in packed.rows:
            self._place(row, packed)

    def _place(self, row: RowSpan, packed: PackedRows) -> None:
        """Give a row the whole blocks of what it shares, and blocks of its own for the rest."""
        share = next((x.share for x in packed.shared if x.span.start <= row.first < x.span.stop), None)
        num_shared = 0 if share is None else share.num_tokens
        whole = [] if share is None else self.of_prefix[share.prefix][: num_shared // TILE_TOKENS]
        own = self._take(num_shared % TILE_TOKENS + row.stop - row.first)
        if share is not None and num_shared % TILE_TOKENS:
            self.copies.append((self.of_prefix[share.prefix][num_shared // TILE_TOKENS], own[0]))
        self.tables.append(whole + own)
        self.shared.append(num_shared)

    def _take(self, num_tokens: int) -> list[int]:
        first = self.num_blocks
        self.num_blocks += -(-num_tokens // TILE_TOKENS)
        return list(range(first, self.num_blocks))


class _CpuPass:
    """Attend in every layer of one pass: first within the prefixes that are fed, then within the rows.

    It leaves the keys and values of the prefixes that are kept with them, each (blocks, H, P, D).
    """

    def __init__(self, packed: PackedRows, places: _Places, memory: Tensor, head_dim: int) -> None:
        self._packed = packed
        self._places = places
        self._memory = memory
        self._width = memory.shape[2] * head_dim
        self._fed = {fed.prefix for fed in packed.fed}
        self._copies = torch.tensor(places.copies).reshape(-1, 2)
        prefixes = [
            (Span(fed.span.start, fed.span.stop - fed.span.start, 0, places.of_prefix[fed.prefix]), None)
            for fed in packed.fed
        ]
        rows = [
            (Span(row.first, row.stop - row.first, num_shared, table), row)
            for row, num_shared, table in zip(packed.rows, places.shared, places.tables, strict=True)
        ]
        self._prefix_call = _call(prefixes, memory, head_dim, packed.read) if prefixes else None
        self._row_call = _call(rows, memory, head_dim, packed.read)

    def __call__(self, layer: int, projected: Tensor, cos: Tensor, sin: Tensor, *, only_read: bool = False) -> Tensor:
        """Attend in one layer; see `FusedAttend`."""
        mixed = projected.new_empty(len(projected), self._width)
        keys, values = self._memory
        for prefix, blocks in self._places.of_prefix.items():
            if prefix not in self._fed:
                for memory, held in zip(self._memory, prefix.layers[layer], strict=True):
                    memory[blocks[0] : blocks[-1] + 1] = held
        if self._prefix_call is not None:
            self._prefix_call.run(projected, mixed, keys, values, cos, sin, only_read)
        if len(self._copies):
            for memory in self._memory:
                memory.index_copy_(0, self._copies[:, 1], memory.index_select(0, self._copies[:, 0]))
        self._row_call.run(projected, mixed, keys, values, cos, sin, only_read)
        for fed in self._packed.fed:
            if fed.is_kept:
                blocks = self._places.of_prefix[fed.prefix]
                held = self._memory[:, blocks[0] : blocks[-1] + 1].clone()
                fed.prefix.layers.append((held[0], held[1]))
        return mixed


def _call(spans: Ordered[tuple[Span, RowSpan | None]], memory: Tensor, head_dim: int, read: list[int]) -> CpuCall:
    """Return the kernel's call for spans: prefixes, or rows with their trees."""
    runs: list[Ordered[int]] = []
    items: list[Ordered[int]] = []
    writes: list[Ordered[int]] = []
    tables: list[int] = []
    masks: list[Tensor] = []
    num_mask_bytes = 0
    for span, row in spans:
        num_branch_tokens = 0 if row is None else row.stop - row.branch
        num_context, table = span.num_rows - num_branch_tokens, len(tables)
        tables += span.block_table
        writes += [(first, count, _slot(span, first)) for first, count in tile_parts(span)]
        if num_context:
            items += [(len(runs), *part) for part in query_parts(num_context)]
            runs.append((span.row, num_context, span.start, table, NONE, 0, 0, NONE))
        if row is not None and num_branch_tokens:
            items += [(len(runs), *part) for part in query_parts(num_branch_tokens)]
            seen_by_all = span.start + num_context
            run = (row.branch, num_branch_tokens, 0, table, seen_by_all, span.stop, num_mask_bytes, NONE)
            runs.append(run)
            masks.append(row.tree.seen(0).to(torch.uint8).flatten())
            num_mask_bytes += len(masks[-1])
    return CpuCall(
        num_heads=memory.shape[2],
        head_dim=head_dim,
        block_size_tokens=TILE_TOKENS,
        dtype=memory.dtype,
        runs=runs,
        items=items,
        writes=writes,
        tables=tables,
        mask=torch.cat(masks) if masks else None,
        max_keys=max(span.stop for span, _ in spans),
        read=read,
    )


def _slot(span: Span, row: int) -> int:
    """Return where a row's key and value go: block * P + offset."""
    place = span.start + row - span.row
    return span.block_table[place // TILE_TOKENS] * TILE_TOKENS + place % TILE_TOKENS
