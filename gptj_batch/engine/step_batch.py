"""StepBatch: a step as tensors, laid out for the model and for attention.

Shape letters: see gptj_batch.engine.
"""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch
from torch import Tensor

from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.padding import ATTENTION_STEPS_PER_OCTAVE, padded_size
from gptj_batch.engine.scheduler import Chunk, Step
from gptj_batch.engine.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class DecodeGroup:
    """Rows of one token each, about equally long, that attend together.

    rows: their place in the step    num_padding: how many of the B rows are none
    pages: (B * H * M,)    hidden: (B, 1, M * P), True behind a row's last token
    """

    rows: slice
    num_padding: int
    pages: Tensor
    hidden: Tensor


@dataclass(frozen=True, kw_only=True)
class PrefillChunk:
    """Several tokens of one sequence.

    rows: their place in the step. Where the chunk continues one that ran before, it also needs
    pages: (H * M,)    seen: (Q, C), True where a token may look
    """

    rows: slice
    pages: Tensor | None
    seen: Tensor | None


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """All that one forward pass reads.

    token_ids, positions: (T,)    slots: (T * H,), where keys and values go    new_blocks: (any,), to be cleared first
    logit_rows: (S,), the last token of each of `sequences`, whose next token is to be chosen
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    new_blocks: Tensor
    decode_groups: list[DecodeGroup]
    prefill_chunks: list[PrefillChunk]
    logit_rows: Tensor
    sequences: list[Sequence]


# Gathered keys of a group are read again at once by a matrix product: on a CPU they should still be in its last cache,
# yet every group costs about ten calls a layer. Between 4 and 64 MiB the whole engine was equally fast.
GROUP_BYTES_CPU = 16 * 1024**2
GROUP_BYTES_GPU = 256 * 1024**2
# A group is as wide as its longest row; a row that would leave more than this share of it empty starts the next. Over
# 64 rows of 8 to 128 tokens in blocks of 16, that reads 1.16 times what is needed, in 5 or 6 groups; 0.25, 1.24 times.
MAX_EMPTY_SHARE = 0.15


def build_step_batch(step: Step, cache: KVCache) -> StepBatch:
    """Lay out a step: decoding rows first, longest first, then prompt chunks."""
    single = [chunk for chunk in step.chunks if chunk.num_tokens == 1]
    single.sort(key=lambda chunk: len(chunk.sequence.block_table), reverse=True)
    several = [chunk for chunk in step.chunks if chunk.num_tokens > 1]
    token_ids, positions, blocks, logit_rows = _token_lists(single + several, cache.block_size_tokens)
    position_tensor = _tensor(positions, cache)
    return StepBatch(
        token_ids=_tensor(token_ids, cache),
        positions=position_tensor,
        slots=cache.token_slots(_tensor(blocks, cache), position_tensor % cache.block_size_tokens),
        new_blocks=_tensor(step.new_blocks, cache),
        decode_groups=_decode_groups(single, cache),
        prefill_chunks=_prefill_chunks(several, len(single), cache),
        logit_rows=_tensor(logit_rows, cache),
        sequences=[chunk.sequence for chunk in single + several if chunk.is_last],
    )


def _token_lists(chunks: list[Chunk], block_size: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return every token's id, position and block, and the rows whose logits are needed."""
    token_ids: list[int] = []
    positions: list[int] = []
    blocks: list[int] = []
    logit_rows: list[int] = []
    for chunk in chunks:
        span = range(chunk.start, chunk.start + chunk.num_tokens)
        token_ids += chunk.sequence.token_ids[span.start : span.stop]
        positions += span
        blocks += [chunk.sequence.block_table[position // block_size] for position in span]
        if chunk.is_last:
            logit_rows.append(len(token_ids) - 1)
    return token_ids, positions, blocks, logit_rows


def _decode_groups(chunks: list[Chunk], cache: KVCache) -> list[DecodeGroup]:
    """Cut rows, sorted by length, into groups of about equal length and bounded size."""
    max_bytes = GROUP_BYTES_CPU if cache.device.type == "cpu" else GROUP_BYTES_GPU
    block_bytes = cache.num_heads * cache.block_size_tokens * cache.head_dim * cache.dtype.itemsize
    groups: list[DecodeGroup] = []
    first = 0
    while first < len(chunks):
        width = len(chunks[first].sequence.block_table)
        max_rows = max(1, max_bytes // (width * block_bytes))
        stop = first + 1
        while stop < min(len(chunks), first + max_rows) and _fits(chunks[stop], width):
            stop += 1
        groups.append(_decode_group(chunks[first:stop], first, width, cache))
        first = stop
    return groups


def _fits(chunk: Chunk, width: int) -> bool:
    return len(chunk.sequence.block_table) >= (1.0 - MAX_EMPTY_SHARE) * width


def _decode_group(chunks: list[Chunk], first: int, width: int, cache: KVCache) -> DecodeGroup:
    num_padding = 0
    if cache.device.type == "cpu":
        num_padding = padded_size(len(chunks), ATTENTION_STEPS_PER_OCTAVE) - len(chunks)
        width = padded_size(width, ATTENTION_STEPS_PER_OCTAVE)
    # A short row's table is filled up with its own first block: whatever stands there is its own, and is masked.
    # Padding looks where the first row does, and what comes of it is dropped.
    of_rows = chunks + chunks[:1] * num_padding
    tables = [_padded(chunk.sequence.block_table, width) for chunk in of_rows]
    lengths = _tensor([chunk.start + 1 for chunk in of_rows], cache)
    places = torch.arange(width * cache.block_size_tokens, device=cache.device)
    return DecodeGroup(
        rows=slice(first, first + len(chunks)),
        num_padding=num_padding,
        pages=cache.table_pages(_tensor(tables, cache)),
        hidden=(places >= lengths[:, None])[:, None, :],
    )


def _padded(table: list[int], width: int) -> list[int]:
    return table + table[:1] * (width - len(table))


def _prefill_chunks(chunks: list[Chunk], first_row: int, cache: KVCache) -> list[PrefillChunk]:
    prefill_chunks = []
    for chunk in chunks:
        rows = slice(first_row, first_row + chunk.num_tokens)
        first_row = rows.stop
        pages = seen = None
        if chunk.start > 0:
            stop = chunk.start + chunk.num_tokens
            pages = cache.table_pages(_tensor([chunk.sequence.block_table], cache))
            places = torch.arange(stop, device=cache.device)
            seen = places <= places[chunk.start :, None]
        prefill_chunks.append(PrefillChunk(rows=rows, pages=pages, seen=seen))
    return prefill_chunks


def _tensor(values: Ordered[int] | Ordered[list[int]], cache: KVCache) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=cache.device)
