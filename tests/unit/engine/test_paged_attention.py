"""Paged against dense attention: the same keys and values, in scattered blocks."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptj_batch import Request
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.paged_attention import PagedAttend
from gptj_batch.engine.scheduler import Chunk, Step
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.step_batch import build_step_batch

HEADS, HEAD_DIM, BLOCK = 2, 8, 4


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query, key, value: (C, H, D)    returns: (C, H, D)"""
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)[0].transpose(0, 1)


class Paged:
    """Sequences of random queries, keys and values, fed chunk by chunk in one order and compared in another."""

    def __init__(self, lengths: list[int], dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.cache = KVCache(
            num_layers=2,
            num_blocks=40,
            num_heads=HEADS,
            block_size_tokens=BLOCK,
            head_dim=HEAD_DIM,
            dtype=dtype,
            device=torch.device("cpu"),
        )
        poison = torch.full((40 * BLOCK, HEADS, HEAD_DIM), torch.nan, dtype=dtype)
        places = torch.arange(40 * BLOCK)
        self.cache.write(1, self.cache.token_slots(places // BLOCK, places % BLOCK), poison, poison)
        blocks = iter(torch.randperm(40, generator=generator).tolist())
        self.qkv = [torch.randn(3, n, HEADS, HEAD_DIM, generator=generator).to(dtype) for n in lengths]
        self.sequences = []
        for uid, n in enumerate(lengths):
            sequence = Sequence(uid, Request(key="a", prompt_token_ids=[0] * n))
            sequence.block_table = [next(blocks) for _ in range(-(-n // BLOCK))]
            self.cache.clear(torch.tensor(sequence.block_table))
            self.sequences.append(sequence)

    def feed(self, *chunks: tuple[int, int, int]) -> list[Tensor]:
        """Run one step of (sequence, start, stop); return each chunk's output."""
        step = Step(chunks=[Chunk(self.sequences[uid], start, stop - start) for uid, start, stop in chunks])
        batch = build_step_batch(step, self.cache)
        order = sorted(chunks, key=lambda c: (c[2] - c[1] > 1, 0 if c[2] - c[1] > 1 else -self._width(c[0])))
        packed = torch.cat([self.qkv[uid][:, start:stop] for uid, start, stop in order], 1)
        output = PagedAttend(self.cache, batch)(1, *packed)
        pieces = dict(zip(order, output.split([stop - start for _, start, stop in order]), strict=True))
        return [pieces[chunk] for chunk in chunks]

    def _width(self, uid: int) -> int:
        return len(self.sequences[uid].block_table)


def test_a_whole_prompt_in_one_chunk() -> None:
    paged = Paged([7])
    torch.testing.assert_close(paged.feed((0, 0, 7))[0], dense(*paged.qkv[0]))


@pytest.mark.parametrize("cuts", [[5], [4], [1, 2, 3], [9, 10], list(range(1, 11))])
def test_a_prompt_cut_anywhere_gives_the_same(cuts: list[int]) -> None:
    paged = Paged([11])
    edges = [0, *cuts, 11]
    pieces = [paged.feed((0, start, stop))[0] for start, stop in pairwise(edges)]
    torch.testing.assert_close(torch.cat(pieces), dense(*paged.qkv[0]))


def test_a_mixed_step_of_decoding_and_prompts_of_all_lengths() -> None:
    lengths = [1, 2, 5, 17, 13, 9, 3]
    paged = Paged(lengths)
    first = [(uid, 0, n - 1) for uid, n in enumerate(lengths[:5]) if n > 1]
    paged.feed(*first, (5, 0, 4))
    chunks = [*((uid, n - 1, n) for uid, n in enumerate(lengths[:5])), (5, 4, 9), (6, 0, 3)]
    for (uid, start, stop), piece in zip(chunks, paged.feed(*chunks), strict=True):
        torch.testing.assert_close(piece, dense(*paged.qkv[uid])[start:stop])


def test_a_neighbour_that_is_not_finite_is_not_seen() -> None:
    paged = Paged([6, 5])
    paged.qkv[1][:] = torch.nan
    paged.feed((0, 0, 5), (1, 0, 4))
    ours, theirs = paged.feed((0, 5, 6), (1, 4, 5))
    torch.testing.assert_close(ours, dense(*paged.qkv[0])[5:])
    assert theirs.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_float32(dtype: torch.dtype) -> None:
    paged = Paged([14], dtype)
    pieces = [paged.feed((0, 0, 9))[0], *(paged.feed((0, n, n + 1))[0] for n in range(9, 14))]
    expected = dense(*(x.float() for x in paged.qkv[0]))
    torch.testing.assert_close(torch.cat(pieces).float(), expected, atol=2e-2, rtol=0)
