import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.engine.block_pool import BlockPool


def test_a_new_pool_is_free() -> None:
    pool = BlockPool(5, 4)
    assert (pool.num_free, pool.num_used, pool.capacity_tokens) == (5, 0, 20)
    pool.check([])


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_tokens_take_whole_blocks(num_tokens: int, num_blocks: int) -> None:
    assert BlockPool(5, 4).blocks_for(num_tokens) == num_blocks


def test_what_was_freed_last_is_used_first() -> None:
    pool = BlockPool(5, 4)
    first = pool.allocate(3)
    pool.free(first[1:2])
    assert pool.allocate(1) == first[1:2]


def test_more_than_is_free_cannot_be_had() -> None:
    with pytest.raises(AssertionError, match="3 blocks asked for, 2 free"):
        BlockPool(2, 4).allocate(3)


@pytest.mark.parametrize("tables", [[[0, 1]], [[0], [0]], [[]], [[0, 1, 2]]])
def test_the_check_finds_a_block_that_is_lost_or_in_two_places(tables: list[list[int]]) -> None:
    pool = BlockPool(4, 4)
    assert pool.allocate(1) == [0]
    with pytest.raises(AssertionError, match="of 4 blocks, 3 are free"):
        pool.check(tables)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_whatever_is_taken_and_given_back_no_block_is_lost_or_owned_twice(actions: list[tuple[bool, int]]) -> None:
    pool = BlockPool(12, 4)
    tables: list[list[int]] = []
    for takes, number in actions:
        if takes and number <= pool.num_free:
            tables.append(pool.allocate(number))
        elif not takes and tables:
            pool.free(tables.pop(number % len(tables)))
        pool.check(tables)
        assert pool.num_free + pool.num_used == 12
        assert pool.num_used == sum(map(len, tables))
