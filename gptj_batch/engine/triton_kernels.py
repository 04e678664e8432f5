"""The Triton kernels of attention over pages; `triton_attention` launches them.

Keys and values of a layer are (N, H, P, D), contiguous; D is padded to a power of two inside a kernel. Scores and sums
are float32, and the softmax counts in powers of two. Places behind a row's length are never read, so what was left
there, NaN included, cannot matter. Numbers that change from step to step are not specialised on: that would compile a
kernel again in mid-run.

Shape letters: see gptj_batch.engine.
"""

import triton
import triton.language as tl

# Stands for "no score yet": finite, since -inf - -inf would be NaN, and low enough to weigh nothing beside any score.
LOWEST = tl.constexpr(-1e38)


@triton.jit
def _joined(highest, weight, mixed, other_highest, other_weight, other_mixed):
    """Return the softmax state of two parts of a context; explicit fma, so that both callers round alike."""
    new_highest = tl.maximum(highest, other_highest)
    fade = tl.exp2(highest - new_highest)
    other_fade = tl.exp2(other_highest - new_highest)
    new_weight = tl.fma(weight, fade, other_weight * other_fade)
    new_mixed = tl.fma(mixed, fade, other_mixed * other_fade)
    return new_highest, new_weight, new_mixed


@triton.jit(do_not_specialize=["table_stride", "max_splits"])
def decode_kernel(
    query,
    keys,
    values,
    tables,
    lengths,
    output,
    part_highest,
    part_weight,
    part_mixed,
    scale,
    query_stride,
    output_stride,
    table_stride,
    max_splits,
    num_heads: tl.constexpr,
    page_tokens: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    split_tokens: tl.constexpr,
    tile_tokens: tl.constexpr,
    keeps_parts: tl.constexpr,
    num_stages: tl.constexpr,
):
    """Let one query per row and head look at its row's pages. Grid: (H, B, workers).

    A context is cut into splits of a fixed size, which the workers share out. A split's state does not depend on who
    computes it, and states are joined in order, here or by `join_kernel`: a row's result has the same bits in any
    batch. Within a split every place of a tile runs its own softmax over its own tokens, so that nothing crosses
    between warps before the split ends.
    """
    head = tl.program_id(0)
    row = tl.program_id(1)
    length = tl.load(lengths + row)
    channels = tl.arange(0, padded_dim)
    is_channel = channels < head_dim
    asked = tl.load(query + row.to(tl.int64) * query_stride + head * head_dim + channels, mask=is_channel, other=0.0)
    asked = asked.to(tl.float32) * scale

    highest = tl.full((), LOWEST, tl.float32)
    weight = tl.full((), 0.0, tl.float32)
    mixed = tl.zeros((padded_dim,), tl.float32)
    for split in tl.range(tl.program_id(2), tl.cdiv(length, split_tokens), tl.num_programs(2)):
        stop = tl.minimum((split + 1) * split_tokens, length)
        tile_highest = tl.full((tile_tokens,), LOWEST, tl.float32)
        tile_weight = tl.zeros((tile_tokens,), tl.float32)
        tile_mixed = tl.zeros((tile_tokens, padded_dim), tl.float32)
        for first in tl.range(split * split_tokens, stop, tile_tokens, num_stages=num_stages):
            tokens = first + tl.arange(0, tile_tokens)
            is_token = tokens < stop
            table = tables + row.to(tl.int64) * table_stride
            blocks = tl.load(table + tokens // page_tokens, mask=is_token, other=0).to(tl.int64)
            places = (blocks * num_heads + head) * page_tokens + tokens % page_tokens
            at = places[:, None] * head_dim + channels[None, :]
            is_there = is_token[:, None] & is_channel[None, :]
            found_keys = tl.load(keys + at, mask=is_there, other=0.0).to(tl.float32)
            found_values = tl.load(values + at, mask=is_there, other=0.0).to(tl.float32)
            scores = tl.where(is_token, tl.sum(found_keys * asked[None, :], 1), float("-inf"))
            new_highest = tl.maximum(tile_highest, scores)
            fade = tl.exp2(tile_highest - new_highest)
            weights = tl.exp2(scores - new_highest)
            tile_weight = tile_weight * fade + weights
            tile_mixed = tile_mixed * fade[:, None] + weights[:, None] * found_values
            tile_highest = new_highest
        split_highest = tl.max(tile_highest, 0)
        share = tl.exp2(tile_highest - split_highest)
        split_weight = tl.sum(tile_weight * share, 0)
        split_mixed = tl.sum(tile_mixed * share[:, None], 0)
        if keeps_parts:
            part = (row * num_heads + head) * max_splits + split
            tl.store(part_highest + part, split_highest)
            tl.store(part_weight + part, split_weight)
            tl.store(part_mixed + part * padded_dim + channels, split_mixed)
        else:
            highest, weight, mixed = _joined(highest, weight, mixed, split_highest, split_weight, split_mixed)
    if not keeps_parts:
        result = (mixed / tl.where(length > 0, weight, 1.0)).to(output.dtype.element_ty)
        tl.store(output + row.to(tl.int64) * output_stride + head * head_dim + channels, result, mask=is_channel)


@triton.jit(do_not_specialize=["max_splits"])
def join_kernel(
    lengths,
    output,
    part_highest,
    part_weight,
    part_mixed,
    output_stride,
    max_splits,
    num_heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    split_tokens: tl.constexpr,
):
    """Join what several workers of `decode_kernel` kept. Grid: (H, B)."""
    head = tl.program_id(0)
    row = tl.program_id(1)
    length = tl.load(lengths + row)
    channels = tl.arange(0, padded_dim)
    highest = tl.full((), LOWEST, tl.float32)
    weight = tl.full((), 0.0, tl.float32)
    mixed = tl.zeros((padded_dim,), tl.float32)
    for split in tl.range(0, tl.cdiv(length, split_tokens)):
        part = (row * num_heads + head) * max_splits + split
        other_highest = tl.load(part_highest + part)
        other_weight = tl.load(part_weight + part)
        other_mixed = tl.load(part_mixed + part * padded_dim + channels)
        highest, weight, mixed = _joined(highest, weight, mixed, other_highest, other_weight, other_mixed)
    result = (mixed / tl.where(length > 0, weight, 1.0)).to(output.dtype.element_ty)
    at = row.to(tl.int64) * output_stride + head * head_dim + channels
    tl.store(output + at, result, mask=channels < head_dim)


@triton.jit(do_not_specialize=["table_stride"])
def prefill_kernel(
    query,
    keys,
    values,
    tables,
    chunks,
    tiles,
    output,
    scale,
    query_stride,
    output_stride,
    table_stride,
    num_heads: tl.constexpr,
    page_tokens: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    tile_queries: tl.constexpr,
    tile_tokens: tl.constexpr,
    precision: tl.constexpr,
    num_stages: tl.constexpr,
):
    """Let several queries of a sequence look back, themselves included. Grid: (H, tiles).

    A query's result has the same bits however its prompt was cut into chunks: its tokens are always taken from the
    sequence's start, `tile_tokens` at a time, and a tile that it may not see changes nothing.
    """
    head = tl.program_id(0)
    chunk = tl.load(tiles + 2 * tl.program_id(1))
    first_query = tl.load(tiles + 2 * tl.program_id(1) + 1)
    first_row = tl.load(chunks + 3 * chunk)
    num_queries = tl.load(chunks + 3 * chunk + 1)
    start = tl.load(chunks + 3 * chunk + 2)

    channels = tl.arange(0, padded_dim)
    is_channel = channels < head_dim
    queries = first_query + tl.arange(0, tile_queries)
    is_query = (queries < num_queries)[:, None] & is_channel[None, :]
    rows = (first_row + queries).to(tl.int64)
    asked = query + rows[:, None] * query_stride + head * head_dim + channels[None, :]
    asked = tl.load(asked, mask=is_query, other=0.0)

    highest = tl.full((tile_queries,), LOWEST, tl.float32)
    weight = tl.zeros((tile_queries,), tl.float32)
    mixed = tl.zeros((tile_queries, padded_dim), tl.float32)
    stop = start + tl.minimum(first_query + tile_queries, num_queries)
    for first in tl.range(0, stop, tile_tokens, num_stages=num_stages):
        tokens = first + tl.arange(0, tile_tokens)
        is_token = tokens < stop
        table = tables + chunk.to(tl.int64) * table_stride
        blocks = tl.load(table + tokens // page_tokens, mask=is_token, other=0).to(tl.int64)
        places = (blocks * num_heads + head) * page_tokens + tokens % page_tokens
        at = places[:, None] * head_dim + channels[None, :]
        is_there = is_token[:, None] & is_channel[None, :]
        found_keys = tl.load(keys + at, mask=is_there, other=0.0)
        found_values = tl.load(values + at, mask=is_there, other=0.0)
        scores = tl.dot(asked, tl.trans(found_keys), input_precision=precision) * scale
        scores = tl.where(tokens[None, :] <= start + queries[:, None], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        fade = tl.exp2(highest - new_highest)
        weights = tl.exp2(scores - new_highest[:, None])
        weight = weight * fade + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(found_values.dtype), found_values, mixed * fade[:, None], input_precision=precision)
        highest = new_highest
    result = (mixed / weight[:, None]).to(output.dtype.element_ty)
    tl.store(output + rows[:, None] * output_stride + head * head_dim + channels[None, :], result, mask=is_query)


@triton.jit
def _rotated(x, cos, sin, turns, group_heads: tl.constexpr, num_pairs: tl.constexpr):
    """Rotate channel pairs (0, 1), (2, 3), ... in float32 and round once.

    x: (G, D)    cos, sin, turns: (D // 2,), the last False for the pairs that stay    returns: (G, D), dtype of x
    """
    even, odd = tl.split(tl.reshape(x.to(tl.float32), (group_heads, num_pairs, 2)))
    new_even = tl.where(turns[None, :], even * cos[None, :] - odd * sin[None, :], even)
    new_odd = tl.where(turns[None, :], odd * cos[None, :] + even * sin[None, :], odd)
    return tl.reshape(tl.join(new_even, new_odd), (group_heads, 2 * num_pairs)).to(x.dtype)


@triton.jit
def rotate_and_write_kernel(
    query,
    key,
    value,
    cos,
    sin,
    slots,
    keys,
    values,
    query_stride,
    key_stride,
    value_stride,
    num_heads: tl.constexpr,
    page_tokens: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    rotary_dim: tl.constexpr,
    group_heads: tl.constexpr,
):
    """Rotate a token's queries and keys in place, and put keys and values into their page. Grid: (T, ceil(H / G)).

    A slot below 0 belongs to no page: nothing is put anywhere.
    """
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * group_heads + tl.arange(0, group_heads)
    channels = tl.arange(0, padded_dim)
    is_there = (heads < num_heads)[:, None] & (channels < head_dim)[None, :]
    at = heads[:, None] * head_dim + channels[None, :]
    new_key = tl.load(key + row * key_stride + at, mask=is_there, other=0.0)
    pairs = tl.arange(0, padded_dim // 2)
    turns = pairs < rotary_dim // 2
    angle = row * (rotary_dim // 2) + pairs
    token_cos = tl.load(cos + angle, mask=turns, other=1.0)
    token_sin = tl.load(sin + angle, mask=turns, other=0.0)
    asked = tl.load(query + row * query_stride + at, mask=is_there, other=0.0)
    asked = _rotated(asked, token_cos, token_sin, turns, group_heads, padded_dim // 2)
    tl.store(query + row * query_stride + at, asked, mask=is_there)
    new_key = _rotated(new_key, token_cos, token_sin, turns, group_heads, padded_dim // 2)
    tl.store(key + row * key_stride + at, new_key, mask=is_there)
    slot = tl.load(slots + row).to(tl.int64)
    page = (slot // page_tokens * num_heads + heads) * page_tokens + slot % page_tokens
    to = page[:, None] * head_dim + channels[None, :]
    is_kept = is_there & (slot >= 0)
    tl.store(keys + to, new_key, mask=is_kept)
    new_value = tl.load(value + row * value_stride + at, mask=is_there, other=0.0)
    tl.store(values + to, new_value, mask=is_kept)
