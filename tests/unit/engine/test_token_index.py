import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.engine.token_index import TokenIndex, num_common_tokens

TOKENS = st.lists(st.integers(0, 2), max_size=5).map(tuple)


def brute_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    return max(count for count in range(min(len(first), len(second)) + 1) if first[:count] == second[:count])


@given(st.lists(TOKENS, unique=True), st.lists(TOKENS, unique=True), TOKENS)
def test_the_closest_shares_as_many_first_tokens_as_any(
    added: list[tuple[int, ...]], removed: list[tuple[int, ...]], wanted: tuple[int, ...]
) -> None:
    index: TokenIndex[tuple[int, ...]] = TokenIndex()
    for tokens in added:
        index.add(tokens, tokens)
    for tokens in set(removed).intersection(added):
        index.remove(tokens)
    left = set(added).difference(removed)
    closest, num_common = index.closest(wanted)
    assert num_common == max((brute_common(tokens, wanted) for tokens in left), default=0)
    assert closest is None if num_common == 0 else brute_common(closest or (), wanted) == num_common
    assert [tokens for tokens, _ in index.items()] == sorted(left)
    assert index.get(wanted) == (wanted if wanted in left else None)


def test_nothing_is_put_under_the_same_tokens_twice() -> None:
    index: TokenIndex[str] = TokenIndex()
    index.add((1,), "a")
    with pytest.raises(AssertionError):
        index.add((1,), "b")


@pytest.mark.parametrize("num_common", [0, 1, 31, 32, 33, 64, 100])
def test_common_tokens_are_counted_one_by_one(num_common: int) -> None:
    shared = list(range(num_common))
    assert num_common_tokens([*shared, 7, 8], [*shared, 9, 8, 8]) == num_common
    assert num_common_tokens([*shared, 7], shared) == num_common
    assert num_common_tokens(shared, shared) == num_common
