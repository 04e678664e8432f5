"""Paged against dense attention, in plain torch: the same keys and values, in scattered blocks."""

from itertools import pairwise

import pytest
import torch

from gptj_batch.engine import paged_attention
from gptj_batch.engine.block_tables import Copy
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.paged_attention import TorchPagedAttention, _groups, _TorchStep
from gptj_batch.engine.step_batch import Span, StepBatch

from .paged_sequences import PagedSequences, Shape, make_cache


def paged(lengths: list[int], dtype: torch.dtype = torch.float32) -> PagedSequences:
    return PagedSequences(lengths, Shape(dtype=dtype, rotary=4), TorchPagedAttention)


def assert_near(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=0)


def test_a_whole_prompt_in_one_chunk() -> None:
    sequences = paged([7])
    assert_near(sequences.feed((0, 0, 7))[0], sequences.expected(0))


@pytest.mark.parametrize("cuts", [[5], [4], [1, 2, 3], [9, 10], list(range(1, 11))])
def test_a_prompt_cut_anywhere_gives_the_same(cuts: list[int]) -> None:
    sequences = paged([11])
    pieces = [sequences.feed((0, start, stop))[0] for start, stop in pairwise([0, *cuts, 11])]
    assert_near(torch.cat(pieces), sequences.expected(0))


def test_a_mixed_step_of_decoding_and_prompts_of_all_lengths() -> None:
    lengths = [1, 2, 5, 17, 13, 9, 3]
    sequences = paged(lengths)
    first = [(uid, 0, n - 1) for uid, n in enumerate(lengths[:5]) if n > 1]
    sequences.feed(*first, (5, 0, 4))
    chunks = [*((uid, n - 1, n) for uid, n in enumerate(lengths[:5])), (5, 4, 9), (6, 0, 3)]
    for (uid, start, stop), piece in zip(chunks, sequences.feed(*chunks), strict=True):
        assert_near(piece, sequences.expected(uid)[start:stop])


def test_a_neighbour_that_is_not_finite_is_not_seen() -> None:
    sequences = paged([6, 5])
    sequences.projected[1][:] = torch.nan
    sequences.feed((0, 0, 5), (1, 0, 4))
    ours, theirs = sequences.feed((0, 5, 6), (1, 4, 5))
    assert_near(ours, sequences.expected(0)[5:])
    assert theirs.isnan().all()


def test_a_copied_block_goes_on_as_its_owners_without_what_stood_behind() -> None:
    sequences = paged([7, 7])
    sequences.projected[1][:6] = sequences.projected[0][:6]
    sequences.feed((0, 0, 6))
    sequences.cache.values[:, sequences.tables[0][1], :, 2:] = torch.nan
    source, destination = (table[1] for table in sequences.tables)
    sequences.tables[1][0] = sequences.tables[0][0]
    (piece,) = sequences.feed((1, 6, 7), copies=[Copy(source, destination, 2)])
    assert_near(piece, sequences.expected(1)[6:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_float64(dtype: torch.dtype) -> None:
    sequences = paged([14], dtype)
    pieces = [sequences.feed((0, 0, 9))[0], *(sequences.feed((0, n, n + 1))[0] for n in range(9, 14))]
    assert_near(torch.cat(pieces), sequences.expected(0), atol=2e-2)


def cache_of(num_heads: int = 1) -> KVCache:
    return make_cache(Shape(heads=num_heads, cache_dim=2, num_blocks=50))


def decoding(*tokens_and_tables: tuple[int, list[int]]) -> list[Span]:
    return [Span(row, 1, n - 1, table) for row, (n, table) in enumerate(tokens_and_tables)]


def planned(cache: KVCache, *spans: Span) -> _TorchStep:
    nothing = torch.zeros(0, dtype=torch.int64)
    slots = [span.block_table[n // 4] * 4 + n % 4 for span in spans for n in range(span.start, span.stop)]
    batch = StepBatch(
        token_ids=nothing,
        positions=nothing,
        slots=slots,
        new_blocks=[],
        copies=[],
        spans=list(spans),
        logit_rows=nothing,
        sequences=[],
    )
    return _TorchStep(cache, batch)


def test_every_head_has_its_own_slot() -> None:
    assert planned(cache_of(num_heads=2), Span(0, 2, 0, [3]))._slots.tolist() == [24, 28, 25, 29]


def test_rows_of_about_the_same_length_decode_together() -> None:
    spans = decoding(*((n, list(range(-(-n // 4)))) for n in (60, 28, 25, 24, 3)))
    assert [len(group) for group in _groups(spans, cache_of())] == [1, 3, 1]


def test_a_short_row_in_a_group_is_filled_up_with_its_own_block_and_masked() -> None:
    long, short = list(range(10, 17)), list(range(20, 26))
    (group,) = planned(cache_of(), *decoding((28, long), (23, short)))._groups
    assert group.pages.tolist() == [*long, *short, 20]
    assert (~group.hidden).sum(-1).tolist() == [[28], [23]]


def test_a_group_is_bounded_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_attention, "GROUP_BYTES_CPU", 2 * 4 * 4 * 2 * 4)  # two rows of four blocks
    spans = decoding(*((16, [0, 1, 2, 3]) for _ in range(5)))
    assert [len(group) for group in _groups(spans, cache_of())] == [2, 2, 1]


def test_only_a_chunk_that_continues_reads_the_cache() -> None:
    fresh, continued = planned(cache_of(), Span(0, 6, 0, [7, 8]), Span(6, 2, 5, [1, 2]))._chunks
    assert (fresh.rows, fresh.pages, fresh.seen) == (slice(0, 6), None, None)
    assert continued.rows == slice(6, 8)
    assert continued.pages is not None
    assert continued.pages.tolist() == [1, 2]
    assert continued.seen is not None
    assert continued.seen.tolist() == [[True] * 6 + [False], [True] * 7]
