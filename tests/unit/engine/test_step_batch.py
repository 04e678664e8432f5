import torch

from gptj_batch import Request
from gptj_batch.engine.block_tables import Copy
from gptj_batch.engine.scheduler import Chunk, Step
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.step_batch import StepBatch, build_step_batch


def make_chunk(uid: int, num_tokens: int, start: int, table: list[int], stop: int | None = None) -> Chunk:
    """Return the chunk [start, stop) of a sequence of num_tokens whose token ids are 100 * uid + position."""
    ids = [100 * uid + position for position in range(num_tokens)]
    sequence = Sequence(uid, Request(key=str(uid), prompt_token_ids=ids))
    sequence.block_table = table
    return Chunk(sequence, start, (num_tokens if stop is None else stop) - start)


def build(*chunks: Chunk) -> StepBatch:
    return build_step_batch(Step(chunks=list(chunks)), 4, torch.device("cpu"))


def test_decoding_rows_come_first_and_only_last_tokens_need_logits() -> None:
    batch = build(make_chunk(1, 6, 0, [7, 8]), make_chunk(2, 9, 8, [1, 2, 3]), make_chunk(3, 9, 2, [4], stop=4))
    assert batch.token_ids.tolist() == [208, 100, 101, 102, 103, 104, 105, 302, 303]
    assert batch.positions.tolist() == [8, 0, 1, 2, 3, 4, 5, 2, 3]
    assert batch.slots == [12, 28, 29, 30, 31, 32, 33, 18, 19]
    assert batch.logit_rows.tolist() == [0, 6]
    assert [sequence.uid for sequence in batch.sequences] == [2, 1]


def test_a_span_says_where_its_rows_and_its_tokens_begin_and_end() -> None:
    decode, fresh, continued = build(
        make_chunk(1, 6, 0, [7, 8]), make_chunk(2, 9, 8, [1, 2, 3]), make_chunk(3, 9, 2, [4], stop=4)
    ).spans
    assert (decode.rows, decode.start, decode.stop, decode.block_table) == (slice(0, 1), 8, 9, [1, 2, 3])
    assert (fresh.rows, fresh.start, fresh.stop) == (slice(1, 7), 0, 6)
    assert (continued.rows, continued.start, continued.stop) == (slice(7, 9), 2, 4)


def test_sequences_decode_longest_first() -> None:
    lengths = {1: 3, 2: 28, 3: 25, 4: 60}
    batch = build(*(make_chunk(uid, n, n - 1, list(range(-(-n // 4)))) for uid, n in lengths.items()))
    assert [sequence.uid for sequence in batch.sequences] == [4, 2, 3, 1]


def test_a_step_in_which_no_sequence_ends_needs_no_logits() -> None:
    batch = build(make_chunk(1, 9, 0, [7], stop=4))
    assert batch.sequences == [] and batch.logit_rows.tolist() == []


def test_new_blocks_and_copies_are_passed_on() -> None:
    step = Step(chunks=[make_chunk(1, 3, 2, [7])], new_blocks=[5], copies=[Copy(2, 7, 2)])
    batch = build_step_batch(step, 4, torch.device("cpu"))
    assert (batch.new_blocks, batch.copies) == ([5], [Copy(2, 7, 2)])
