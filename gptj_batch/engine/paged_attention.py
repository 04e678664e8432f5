"""Attention over the KV cache: what a kind of it offers, and the kind in plain torch, for every device.

Shape letters: see gptj_batch.engine.
"""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gptj_batch.engine.body import FusedAttend, Rotated
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.padding import ATTENTION_STEPS_PER_OCTAVE, padded_size
from gptj_batch.engine.step_batch import Span, StepBatch

# Gathered keys of a group are read again at once by a matrix product: on a CPU they should still be in its last cache,
# yet every group costs about ten calls a layer. Between 4 and 64 MiB the whole engine was equally fast.
GROUP_BYTES_CPU = 16 * 1024**2
GROUP_BYTES_GPU = 256 * 1024**2
# A group is as wide as its longest row; a row that would leave more than this share of it empty starts the next. Over
# 64 rows of 8 to 128 tokens in blocks of 16, that reads 1.16 times what is needed, in 5 or 6 groups; 0.25, 1.24 times.
MAX_EMPTY_SHARE = 0.15


class PagedAttention(Protocol):
    """A way to write and read the KV cache."""

    def plan(self, batch: StepBatch) -> FusedAttend:
        """Prepare the attention of one step, in all its layers."""
        ...


class TorchPagedAttention:
    """Gather blocks, then matrix products: in plain torch, on any device.

    Keys and values stand in a page token after token, so that gathered pages are a product's operands as they are.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def plan(self, batch: StepBatch) -> FusedAttend:
        """Prepare a step; see `PagedAttention`."""
        self._cache.clear(batch.new_blocks)
        self._cache.copy(batch.copies)
        self._cache.clear_behind(batch.copies)
        return Rotated(_TorchStep(self._cache, batch), len(batch.slots), self._cache.num_heads)


@dataclass(frozen=True, kw_only=True)
class _DecodeGroup:
    """Rows of one token each, about equally long, that attend together.

    rows: their place in the step    num_padding: how many of the B rows are none
    pages: (B * H * M,)    hidden: (B, 1, M * P), True behind a row's last token
    """

    rows: slice
    num_padding: int
    pages: Tensor
    hidden: Tensor


@dataclass(frozen=True, kw_only=True)
class _PrefillChunk:
    """Several tokens of one sequence.

    rows: their place in the step. Where the chunk continues one that ran before, it also needs
    pages: (H * M,)    seen: (Q, C), True where a token may look
    """

    rows: slice
    pages: Tensor | None
    seen: Tensor | None


class _TorchStep:
    """Store a step's keys and values, then let every token attend to its own sequence."""

    def __init__(self, cache: KVCache, batch: StepBatch) -> None:
        self._cache = cache
        self._scale = cache.head_dim**-0.5
        self._slots = self._token_slots(torch.tensor(batch.slots, device=cache.device))
        single = [span for span in batch.spans if span.num_rows == 1]
        self._groups = [self._decode_group(spans) for spans in _groups(single, cache)]
        self._chunks = [self._prefill_chunk(span) for span in batch.spans if span.num_rows > 1]
        # One row a token, and one row a page: the same memory under two names each.
        self._rows = [x.view(len(x), -1, cache.head_dim) for x in (cache.keys, cache.values)]
        self._pages = [x.flatten(1, 2).flatten(2) for x in (cache.keys, cache.values)]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in one layer; see `gptj_batch.model.attention.Attend`.

        query, key, value: (T, H, D)    returns: (T, H, D)
        """
        for rows, new in zip(self._rows, (key, value), strict=True):
            rows[layer].index_copy_(0, self._slots, new.reshape(-1, self._cache.head_dim))
        output = torch.empty_like(query)
        for group in self._groups:
            output[group.rows] = self._decode(layer, group, query[group.rows])
        for chunk in self._chunks:
            output[chunk.rows] = self._prefill(layer, chunk, query[chunk.rows], key[chunk.rows], value[chunk.rows])
        return output

    def _decode(self, layer: int, group: _DecodeGroup, query: Tensor) -> Tensor:
        """Let one token per row look at its row's pages.

        Two batched products: at one query per row torch's fused attention on a CPU is 5 to 10 times slower in bf16
        (engine-facts 3.3). The softmax is in float32. Scaling the query first keeps float16 scores in range.

        query: (B - padding, H, D)    returns: (B - padding, H, D)
        """
        num_queries = len(query)
        if group.num_padding:
            query = F.pad(query, (0, 0, 0, 0, 0, group.num_padding))
        num_rows, num_heads, head_dim = query.shape
        keys, values = (x.view(num_rows * num_heads, -1, head_dim) for x in self._read(layer, group.pages))
        scores = torch.bmm((query * self._scale).view(-1, 1, head_dim), keys.transpose(1, 2))
        scores = scores.view(num_rows, num_heads, -1).masked_fill_(group.hidden, -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return torch.bmm(weights.view(num_rows * num_heads, 1, -1), values).view_as(query)[:num_queries]

    def _prefill(self, layer: int, chunk: _PrefillChunk, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Let the tokens of one sequence look back; what this step brought need not be read from the cache.

        query, key, value: (Q, H, D)    returns: (Q, H, D)
        """
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        if chunk.pages is None or chunk.seen is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self._scale)
        else:
            num_heads, num_context = query.shape[1], chunk.seen.shape[-1]
            keys, values = (
                x.view(1, num_heads, -1, self._cache.head_dim)[:, :, :num_context]
                for x in self._read(layer, chunk.pages)
            )
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=chunk.seen, scale=self._scale)
        return mixed[0].transpose(0, 1)

    def _read(self, layer: int, pages: Tensor) -> list[Tensor]:
        """Gather a layer's keys and values.

        pages: (B * H * M,), int64    returns: two of (B * H * M, P * D)
        """
        return [of_cache[layer].index_select(0, pages) for of_cache in self._pages]

    def _decode_group(self, spans: list[Span]) -> _DecodeGroup:
        cache, width, num_padding = self._cache, len(spans[0].block_table), 0
        if cache.device.type == "cpu":
            num_padding = padded_size(len(spans), ATTENTION_STEPS_PER_OCTAVE) - len(spans)
            width = padded_size(width, ATTENTION_STEPS_PER_OCTAVE)
        # A short row's table is filled up with its own first block: whatever stands there is its own, and is masked.
        # Padding looks where the first row does, and what comes of it is dropped.
        of_rows = spans + spans[:1] * num_padding
        tables = [span.block_table + span.block_table[:1] * (width - len(span.block_table)) for span in of_rows]
        lengths = torch.tensor([span.stop for span in of_rows], device=cache.device)
        places = torch.arange(width * cache.block_size_tokens, device=cache.device)
        return _DecodeGroup(
            rows=slice(spans[0].row, spans[0].row + len(spans)),
            num_padding=num_padding,
            pages=self._table_pages(tables),
            hidden=(places >= lengths[:, None])[:, None, :],
        )

    def _prefill_chunk(self, span: Span) -> _PrefillChunk:
        if span.start == 0:
            return _PrefillChunk(rows=span.rows, pages=None, seen=None)
        places = torch.arange(span.stop, device=self._cache.device)
        return _PrefillChunk(
            rows=span.rows,
            pages=self._table_pages([span.block_table]),
            seen=places <= places[span.start :, None],
        )

    def _token_slots(self, slots: Tensor) -> Tensor:
        """Return where each head's part of each token goes.

        slots: (T,)    returns: (T * H,)
        """
        size, num_heads = self._cache.block_size_tokens, self._cache.num_heads
        pages = (slots // size)[:, None] * num_heads + torch.arange(num_heads, device=slots.device)
        return (pages * size + (slots % size)[:, None]).flatten()

    def _table_pages(self, tables: Ordered[list[int]]) -> Tensor:
        """Return the pages behind B block tables, head by head: (B * H * M,)."""
        device, num_heads = self._cache.device, self._cache.num_heads
        blocks = torch.tensor(tables, dtype=torch.int64, device=device)
        heads = torch.arange(num_heads, device=device)
        return (blocks[:, None, :] * num_heads + heads[:, None]).flatten()


def _groups(spans: list[Span], cache: KVCache) -> list[list[Span]]:
    """Cut rows, sorted by length, into groups of about equal length and bounded size."""
    max_bytes = GROUP_BYTES_CPU if cache.device.type == "cpu" else GROUP_BYTES_GPU
    block_bytes = cache.num_heads * cache.block_size_tokens * cache.head_dim * cache.dtype.itemsize
    groups: list[list[Span]] = []
    for span in spans:
        width = len(groups[-1][0].block_table) if groups else 0
        is_full = not groups or len(groups[-1]) >= max(1, max_bytes // (width * block_bytes))
        if is_full or len(span.block_table) < (1.0 - MAX_EMPTY_SHARE) * width:
            groups.append([])
        groups[-1].append(span)
    return groups
