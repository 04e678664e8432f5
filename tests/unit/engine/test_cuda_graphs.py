"""Decoding steps recorded by batch size: which size, what is filled in, what comes out. The recorder is a fake."""

from collections.abc import Callable

import pytest
import torch

from gptj_batch.engine.cuda_graphs import Decoded, DecodeGraphs, DecodeInputs, batch_sizes, pick

CPU = torch.device("cpu")


class Recorder:
    """Do what a CUDA graph does: the same operations on the same tensors, each time."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.replayed: list[int] = []

    def __call__(self, function: Callable[[], Decoded]) -> tuple[Callable[[], None], Decoded]:
        self.num_recorded += 1
        results = function()

        def replay() -> None:
            self.replayed.append(len(results.logits))
            for old, new in zip(results, function(), strict=True):
                old.copy_(new)

        return replay, results


def step(inputs: DecodeInputs) -> Decoded:
    """Give logits that show every input of a row; one that is none would show its table's garbage."""
    seen = inputs.token_ids + 10 * inputs.positions + 100 * inputs.slots + 1000 * inputs.lengths
    return pick(torch.stack((seen.float(), inputs.tables.sum(1).float()), 1))


def rows(num_rows: int, num_blocks: int = 2) -> DecodeInputs:
    numbers = torch.arange(num_rows)
    return DecodeInputs(
        token_ids=numbers,
        positions=numbers + 1,
        slots=(numbers + 2).int(),
        tables=torch.ones(num_rows, num_blocks, dtype=torch.int32),
        lengths=(numbers + 3).int(),
    )


def test_batch_sizes_are_few_and_end_with_the_largest_batch() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(6) == [1, 2, 4, 6]
    assert batch_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert batch_sizes(384)[-6:] == [240, 256, 288, 320, 352, 384]
    assert len(batch_sizes(256)) == 23


def test_no_batch_is_filled_up_by_more_than_a_quarter_of_its_size() -> None:
    sizes = batch_sizes(512)
    for rows_found in range(8, 513):
        size = next(size for size in sizes if size >= rows_found)
        assert size - rows_found <= max(7, rows_found / 4)


def test_a_step_is_replayed_in_the_smallest_recording_that_holds_it() -> None:
    recorder = Recorder()
    graphs = DecodeGraphs(step, DecodeInputs.empty(16, 4, CPU), 16, recorder)
    for num_rows in (1, 2, 3, 5, 8, 9, 16):
        graphs.run(rows(num_rows))
    assert recorder.replayed == [1, 2, 4, 8, 8, 16, 16]
    assert recorder.num_recorded == len(batch_sizes(16))


@pytest.mark.parametrize("num_rows", [1, 3, 6])
def test_a_replayed_step_gives_what_a_plain_one_gives(num_rows: int) -> None:
    graphs = DecodeGraphs(step, DecodeInputs.empty(6, 4, CPU), 6, Recorder())
    found, expected = graphs.run(rows(num_rows)), step(rows(num_rows))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.picks, expected.picks)


def test_rows_of_an_earlier_step_are_none_in_a_smaller_one() -> None:
    inputs = DecodeInputs.empty(4, 3, CPU)
    inputs.fill(rows(4))
    inputs.fill(rows(2))
    assert inputs.slots.tolist() == [2, 3, -1, -1]
    assert inputs.lengths.tolist() == [3, 4, 0, 0]


def test_nothing_is_a_row_while_recording() -> None:
    seen: list[DecodeInputs] = []

    def watch(inputs: DecodeInputs) -> Decoded:
        seen.append(inputs)
        return step(inputs)

    DecodeGraphs(watch, DecodeInputs.empty(4, 3, CPU), 4, Recorder())
    assert [len(inputs.slots) for inputs in seen] == [4, 2, 1]
    assert all((inputs.slots == -1).all() and not inputs.lengths.any() for inputs in seen)


def test_inputs_stay_where_they_are() -> None:
    inputs = DecodeInputs.empty(4, 3, CPU)
    before = inputs.head(2).tables.data_ptr()
    inputs.fill(rows(3))
    assert inputs.head(2).tables.data_ptr() == before


def test_the_likeliest_token_is_picked_and_what_is_not_finite_is_marked() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, torch.nan, 1.0], [torch.inf, 0.0, 0.0], [-torch.inf, 2.0, 0.0]])
    picks = pick(logits).picks
    assert picks[0, 0] == 1
    assert picks[1].tolist() == [1, 0, 0, 0]
