"""The roofline: how fast a workload could be at most, were the machine's matrix products all that took time."""

from typing import Final

from jobs.bench.checkpoints import SHAPE
from jobs.bench.work import Work

BLOCKS_FLOPS: Final = 2 * 12 * SHAPE["n_embd"] ** 2 * SHAPE["n_layer"]
HEAD_FLOPS: Final = 2 * SHAPE["n_embd"] * SHAPE["vocab_size"]


def num_positions(work: Work) -> int:
    """Return how many tokens go through the blocks: all but the last of every row."""
    return sum(len(row.prompt) + row.max_new_tokens - 1 for row in work.rows)


def generation_flops(work: Work) -> int:
    """Return the products of generation without a token computed twice: the same count for every engine.

    These are every token but the last of a row once through the blocks, and every generated one through the head.
    Attention is left out: it is bound by memory, and small here. What our engine need not do is counted all the same
    (the first block of tokens that come again, the last one of those that nobody reads), so that its share can pass 1.
    """
    return num_positions(work) * BLOCKS_FLOPS + work.num_new_tokens * HEAD_FLOPS


def roofline_share(work: Work, seconds: float, gemm_gflops: float) -> float:
    """Return the time that the products alone take, at the speed measured just before, as a share of `seconds`."""
    return generation_flops(work) / (gemm_gflops * 1e9) / seconds
