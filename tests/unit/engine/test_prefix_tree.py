import pytest

from gptj_batch.engine.prefix_tree import Match, PrefixTree


def found(match: Match) -> tuple[list[int], int | None, int, int]:
    return match.blocks, match.source, match.num_copied_tokens, match.num_tokens


@pytest.fixture
def tree() -> PrefixTree:
    """Hold (1 2 3)(4 5 6) in blocks 10 and 11, (1 2 3)(4 7 7) in 10 and 12, and the beginning (8 8 .) in 13."""
    tree = PrefixTree(3)
    tree.insert([10], 0, (1, 2, 3))
    tree.insert([10, 11], 1, (4, 5, 6))
    tree.insert([10, 12], 1, (4, 7, 7))
    tree.insert([13], 0, (8, 8))
    tree.check()
    return tree


@pytest.mark.parametrize(
    ("token_ids", "blocks", "source", "num_copied"),
    [
        ([1, 2, 3, 4, 5, 6], [10, 11], None, 0),
        ([1, 2, 3, 4, 5, 6, 4, 5, 6], [10, 11], None, 0),
        ([1, 2, 3, 4, 7, 8], [10], 12, 2),
        ([1, 2, 3, 5], [10], None, 0),
        ([1, 2, 2], [], 10, 2),
        ([8, 8, 8, 8], [], 13, 2),
        ([4, 5, 6], [], None, 0),
        ([], [], None, 0),
    ],
)
def test_whole_blocks_are_shared_and_the_closest_one_behind_them_is_a_source(
    tree: PrefixTree, token_ids: list[int], blocks: list[int], source: int | None, num_copied: int
) -> None:
    expected = (blocks, source, num_copied, 3 * len(blocks) + num_copied)
    assert found(tree.match(token_ids, len(token_ids))) == expected


@pytest.mark.parametrize(("max_tokens", "blocks", "num_copied"), [(0, [], 0), (2, [], 2), (3, [10], 0), (5, [10], 2)])
def test_no_more_is_matched_than_may_be(tree: PrefixTree, max_tokens: int, blocks: list[int], num_copied: int) -> None:
    match = tree.match([1, 2, 3, 4, 5, 6], max_tokens)
    assert (match.blocks, match.num_copied_tokens) == (blocks, num_copied)


def test_of_two_blocks_with_the_same_content_the_first_stays(tree: PrefixTree) -> None:
    assert tree.insert([10, 20], 1, (4, 5, 6)) == 11
    assert 20 not in tree
    assert tree.insert([21], 0, (8,)) == 13
    assert 21 not in tree


def test_a_block_that_becomes_fuller_is_found_by_its_new_tokens(tree: PrefixTree) -> None:
    assert tree.insert([13], 0, (8, 8, 9)) == 13
    tree.check()
    assert found(tree.match([8, 8, 9, 1], 4)) == ([13], None, 0, 3)


def test_a_block_that_becomes_what_another_is_gives_way(tree: PrefixTree) -> None:
    tree.insert([10, 14], 1, (4, 8))
    tree.insert([10, 15], 1, (4, 8, 8))
    assert tree.insert([10, 14], 1, (4, 8, 8)) == 15
    assert 14 not in tree
    tree.check()


def test_ends_are_forgotten_before_beginnings(tree: PrefixTree) -> None:
    with pytest.raises(AssertionError, match="block 10 is to be forgotten before those that continue it"):
        tree.remove(10)


def test_what_is_forgotten_is_not_found(tree: PrefixTree) -> None:
    tree.remove(11)
    tree.check()
    assert found(tree.match([1, 2, 3, 4, 5, 6], 6)) == ([10], 12, 1, 4)
