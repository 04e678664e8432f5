import torch

from jobs.bench.batches import BatchOptions, batches, pad_left, pad_right, sample
from jobs.bench.work import Work, WorkRow


def rows(*lengths: int) -> list[WorkRow]:
    return [WorkRow(prompt=list(range(1, length + 1))) for length in lengths]


def test_every_row_is_in_one_batch() -> None:
    for is_sorted in (False, True):
        found = list(batches(rows(3, 1, 2, 5, 4), BatchOptions(size=2, is_sorted=is_sorted)))
        assert sorted(index for batch in found for index in batch) == [0, 1, 2, 3, 4]
        assert [len(batch) for batch in found] == [2, 2, 1]


def test_sorted_batches_begin_with_the_longest_rows() -> None:
    assert list(batches(rows(3, 1, 2, 5), BatchOptions(size=2, is_sorted=True))) == [[3, 0], [2, 1]]


def test_a_sample_has_short_and_long_batches_and_is_cut_the_same_way_again() -> None:
    work = Work(kind="generate", rows=rows(*range(1, 41)))
    options = BatchOptions(size=4, is_sorted=True)
    few = sample(work, options, 2)
    assert [len(row.prompt) for row in few.rows] == [32, 31, 30, 29, 12, 11, 10, 9]
    assert [[len(few.rows[i].prompt) for i in batch] for batch in batches(few.rows, options)] == [
        [32, 31, 30, 29],
        [12, 11, 10, 9],
    ]


def test_a_sample_of_more_batches_than_there_are_is_everything() -> None:
    work = Work(kind="generate", rows=rows(1, 2, 3))
    assert len(sample(work, BatchOptions(size=2, is_sorted=False), 9).rows) == 3


def test_left_padded_rows_end_together_and_count_their_own_positions() -> None:
    padded = pad_left([[7, 8, 9], [5]], first_position=10)
    assert padded.input_ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert padded.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert padded.position_ids[padded.mask.bool()].tolist() == [10, 11, 12, 10]


def test_right_padded_rows_begin_together() -> None:
    padded = pad_right([[7, 8, 9], [5]], pad_token_id=3)
    assert padded.input_ids.tolist() == [[7, 8, 9], [5, 3, 3]]
    assert torch.equal(padded.mask, torch.tensor([[1, 1, 1], [1, 0, 0]]))
