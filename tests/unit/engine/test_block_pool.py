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


def test_a_shared_block_is_free_when_its_last_owner_gives_it_back() -> None:
    pool = BlockPool(3, 4)
    (block,) = pool.allocate(1)
    pool.share([block])
    pool.check([[block], [block]])
    pool.free([block])
    assert not pool.is_free(block)
    pool.free([block])
    assert pool.is_free(block)
    pool.check([])


def test_a_known_block_is_used_for_something_else_only_when_no_other_is_left() -> None:
    pool = BlockPool(3, 2)
    known, other = pool.allocate(2)
    pool.tree.insert([known], 0, (7, 8))
    pool.free([known, other])
    assert pool.num_free == 3
    assert known not in pool.allocate(2)
    assert known in pool.tree
    assert pool.allocate(1) == [known]
    assert known not in pool.tree


def test_of_known_blocks_the_one_freed_longest_ago_goes_first_and_an_end_before_its_beginning() -> None:
    pool = BlockPool(4, 2)
    table = pool.allocate(4)
    pool.tree.insert(table[:1], 0, (1, 1))
    pool.tree.insert(table, 1, (2, 2))
    pool.tree.insert(table[2:], 0, (3, 3))
    pool.tree.insert(table[3:], 0, (4, 4))
    pool.free(table[2:3])
    pool.free(reversed(table[:2]))
    pool.check([table[3:]])
    pool.share(table[2:3])  # found again: it is not the oldest any more
    pool.free(table[2:3])
    assert pool.allocate(3) == [table[1], table[0], table[2]]


@pytest.mark.parametrize("tables", [[[0, 1]], [[]], [[0, 1, 2]], []])
def test_the_check_finds_a_block_that_is_lost_or_both_free_and_owned(tables: list[list[int]]) -> None:
    pool = BlockPool(4, 4)
    assert pool.allocate(1) == [0]
    with pytest.raises(AssertionError, match="of 4 blocks, 3 are free"):
        pool.check(tables)


def test_the_check_finds_an_owner_that_nobody_noted() -> None:
    pool = BlockPool(4, 4)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="block 0 has 2 owners, 1 are noted"):
        pool.check([[0], [0]])


def test_the_check_finds_a_beginning_that_would_go_before_its_end() -> None:
    pool = BlockPool(2, 1)
    table = pool.allocate(2)
    pool.tree.insert(table, 0, (1,))
    pool.tree.insert(table, 1, (2,))
    pool.free(table)
    with pytest.raises(AssertionError, match="used up before its continuation"):
        pool.check([])


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
