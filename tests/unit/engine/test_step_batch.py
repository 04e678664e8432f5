import pytest
import torch

from gptj_batch import Request
from gptj_batch.engine import step_batch
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.scheduler import Chunk, Step
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.step_batch import StepBatch, build_step_batch


def make_cache(num_heads: int = 1) -> KVCache:
    return KVCache(
        num_layers=1,
        num_blocks=50,
        num_heads=num_heads,
        block_size_tokens=4,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def make_chunk(uid: int, num_tokens: int, start: int, table: list[int], stop: int | None = None) -> Chunk:
    """Return the chunk [start, stop) of a sequence of num_tokens whose token ids are 100 * uid + position."""
    ids = [100 * uid + position for position in range(num_tokens)]
    sequence = Sequence(uid, Request(key=str(uid), prompt_token_ids=ids))
    sequence.block_table = table
    return Chunk(sequence, start, (num_tokens if stop is None else stop) - start)


def build(*chunks: Chunk, num_heads: int = 1) -> StepBatch:
    return build_step_batch(Step(chunks=list(chunks)), make_cache(num_heads))


def test_decoding_rows_come_first_and_only_last_tokens_need_logits() -> None:
    batch = build(
        make_chunk(1, 6, 0, [7, 8]), make_chunk(2, 9, 8, [1, 2, 3]), make_chunk(3, 9, 2, [4], stop=4), num_heads=1
    )
    assert batch.token_ids.tolist() == [208, 100, 101, 102, 103, 104, 105, 302, 303]
    assert batch.positions.tolist() == [8, 0, 1, 2, 3, 4, 5, 2, 3]
    assert batch.slots.tolist() == [12, 28, 29, 30, 31, 32, 33, 18, 19]
    assert batch.logit_rows.tolist() == [0, 6]
    assert [sequence.uid for sequence in batch.sequences] == [2, 1]


def test_every_head_has_its_own_slot() -> None:
    batch = build(make_chunk(1, 2, 0, [3]), num_heads=2)
    assert batch.slots.tolist() == [24, 28, 25, 29]


def test_rows_of_about_the_same_length_decode_together() -> None:
    lengths = {1: 3, 2: 28, 3: 25, 4: 24, 5: 60}
    chunks = [make_chunk(uid, n, n - 1, list(range(-(-n // 4)))) for uid, n in lengths.items()]
    batch = build(*chunks)
    assert [sequence.uid for sequence in batch.sequences] == [5, 2, 3, 4, 1]
    assert [group.rows for group in batch.decode_groups] == [slice(0, 1), slice(1, 4), slice(4, 5)]


def test_a_short_row_in_a_group_is_filled_up_with_its_own_block_and_masked() -> None:
    long, short = list(range(10, 17)), list(range(20, 26))
    (group,) = build(make_chunk(1, 28, 27, long), make_chunk(2, 23, 22, short)).decode_groups
    assert group.pages.tolist() == [*long, *short, 20]
    assert (~group.hidden).sum(-1).tolist() == [[28], [23]]


def test_a_group_is_bounded_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_batch, "GROUP_BYTES_CPU", 2 * 4 * 4 * 2 * 4)  # two rows of four blocks
    batch = build(*(make_chunk(uid, 16, 15, [0, 1, 2, 3]) for uid in range(5)))
    assert [group.rows for group in batch.decode_groups] == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_only_a_chunk_that_continues_reads_the_cache() -> None:
    fresh, continued = build(make_chunk(1, 6, 0, [7, 8]), make_chunk(2, 7, 5, [1, 2])).prefill_chunks
    assert (fresh.rows, fresh.pages, fresh.seen) == (slice(0, 6), None, None)
    assert continued.rows == slice(6, 8)
    assert continued.pages is not None
    assert continued.pages.tolist() == [1, 2]
    assert continued.seen is not None
    assert continued.seen.tolist() == [[True] * 6 + [False], [True] * 7]
