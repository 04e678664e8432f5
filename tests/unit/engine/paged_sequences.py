"""PagedSequences: sequences of random queries, keys and values, fed through a paged cache, and what must come out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gptj_batch import Request
from gptj_batch.engine.block_tables import Copy
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.paged_attention import PagedAttention
from gptj_batch.engine.scheduler import Chunk, Step
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.step_batch import build_step_batch
from gptj_batch.model.rotary import angles, rotate

LAYER = 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is fed, and the cache that it goes through; `cache_dim` is what a token takes there."""

    heads: int = 2
    head_dim: int = 8
    cache_dim: int = 8
    rotary: int = 8
    block: int = 4
    num_blocks: int = 40
    dtype: torch.dtype = torch.float32


def make_cache(shape: Shape) -> KVCache:
    """Return a cache in which nothing is a number, so that whatever is read without having been written shows."""
    cache = KVCache(
        num_layers=2,
        num_blocks=shape.num_blocks,
        num_heads=shape.heads,
        block_size_tokens=shape.block,
        head_dim=shape.cache_dim,
        dtype=shape.dtype,
        device=torch.device("cpu"),
    )
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


class PagedSequences:
    """Sequences of random projections in scattered blocks; `projected[i]` is (C, 3 * E), of the i-th."""

    def __init__(self, lengths: list[int], shape: Shape, make_attention: Callable[[KVCache], PagedAttention]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape = shape
        self.cache = make_cache(shape)
        self.attention = make_attention(self.cache)
        width = 3 * shape.heads * shape.head_dim
        self.projected = [torch.randn(n, width, generator=generator).to(shape.dtype) for n in lengths]
        blocks = iter(torch.randperm(shape.num_blocks, generator=generator).tolist())
        self.tables = [[next(blocks) for _ in range(-(-n // shape.block))] for n in lengths]
        self._sequences = [Sequence(uid, Request(key="a", prompt_token_ids=[0] * n)) for uid, n in enumerate(lengths)]
        self._begun: set[int] = set()

    def feed(
        self, *chunks: tuple[int, int, int], copies: list[Copy] | None = None, only_read: bool = False
    ) -> list[Tensor]:
        """Run one step of (sequence, start, stop); return each chunk's output, with `only_read` its last token's."""
        step = Step(
            chunks=[Chunk(self._sequences[uid], start, stop - start) for uid, start, stop in chunks],
            copies=copies or [],
        )
        copied = {copy.destination for copy in step.copies}
        for uid, _, stop in chunks:
            table = self._sequences[uid].block_table = self.tables[uid][: -(-stop // self.shape.block)]
            step.new_blocks += [block for block in table if block not in self._begun | copied]
            self._begun.update(table)
        batch = build_step_batch(step, self.shape.block, torch.device("cpu"))
        order = sorted(chunks, key=lambda chunk: (chunk[2] - chunk[1] > 1, -len(self._sequences[chunk[0]].block_table)))
        assert [(start, stop) for _, start, stop in order] == [(span.start, span.stop) for span in batch.spans]
        packed = torch.cat([self.projected[uid][start:stop] for uid, start, stop in order])
        padding = packed.new_full((3, packed.shape[1]), torch.nan)
        cos, sin = angles(torch.cat((batch.positions, torch.zeros(3, dtype=torch.int64))), self.shape.rotary)
        attend = self.attention.plan(batch)
        output = attend(LAYER, torch.cat((packed, padding)), cos, sin, only_read=only_read)[:-3]
        sizes = [stop - start for _, start, stop in order]
        pieces = {
            chunk: piece[-1:] if only_read else piece for chunk, piece in zip(order, output.split(sizes), strict=True)
        }
        return [pieces[chunk] for chunk in chunks]

    def expected(self, uid: int) -> Tensor:
        """Return what dense attention in float64 gives for a whole sequence: (C, E)."""
        shape, projected = self.shape, self.projected[uid]
        query, key, value = projected.unflatten(-1, (3, shape.heads, -1)).unbind(1)
        cos, sin = angles(torch.arange(len(projected)), shape.rotary)
        query, key = (rotate(x, cos, sin).double().transpose(0, 1) for x in (query, key))
        scores = query @ key.transpose(1, 2) * shape.head_dim**-0.5
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights @ value.double().transpose(0, 1)).transpose(0, 1).flatten(1)
