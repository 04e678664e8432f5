from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.engine.prefix_groups import (
    GROUP_COST_TOKENS,
    MIN_SHARED_TOKENS,
    Group,
    find_groups,
    make_key,
    num_common_tokens,
)

# Beginnings are put together from a few stretches, so that they branch at several depths; what follows is random.
STRETCHES = st.sampled_from([[7] * 20, [8] * 9, [7] * 40, [300, 2**31 - 1] * 16])
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=5)
SEQUENCES = st.builds(
    lambda stretches, tail: [*(token for stretch in stretches for token in stretch), *tail],
    st.lists(STRETCHES, max_size=4),
    TOKENS,
)
MANY = st.lists(SEQUENCES, max_size=12)


def groups_of(sequences: list[list[int]]) -> list[Group]:
    return find_groups([make_key(sequence) for sequence in sequences])


def saved(num_members: int, num_tokens: int) -> int:
    return (num_members - 1) * num_tokens - GROUP_COST_TOKENS


def common(one: list[int], other: list[int]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other)))
    )


@given(TOKENS, TOKENS, TOKENS)
def test_common_tokens_are_counted(beginning: list[int], one: list[int], other: list[int]) -> None:
    one, other = beginning + one, beginning + other
    assert num_common_tokens(make_key(one), make_key(other)) == common(one, other)


@given(st.lists(TOKENS, max_size=8))
def test_keys_sort_as_the_tokens_do(sequences: list[list[int]]) -> None:
    assert sorted(sequences) == sorted(sequences, key=make_key)


@given(MANY)
def test_nobody_is_in_two_groups_and_every_member_has_what_is_shared(sequences: list[list[int]]) -> None:
    groups = groups_of(sequences)
    members = [member for group in groups for member in group.members]
    assert len(set(members)) == len(members) and set(members) <= set(range(len(sequences)))
    for group in groups:
        assert len(group.members) >= 2 and group.num_tokens >= MIN_SHARED_TOKENS
        beginnings = {tuple(sequences[member][: group.num_tokens]) for member in group.members}
        assert [len(beginning) for beginning in beginnings] == [group.num_tokens]


@given(MANY)
def test_no_single_group_that_could_be_made_saves_more(sequences: list[list[int]]) -> None:
    total = sum(saved(len(group.members), group.num_tokens) for group in groups_of(sequences))
    depths = {common(one, other) for one, other in combinations(sequences, 2)}
    possible = [
        saved(sum(sequence[:depth] == one[:depth] for sequence in sequences), depth)
        for depth in depths
        if depth >= MIN_SHARED_TOKENS
        for one in sequences
        if len(one) >= depth
    ]
    assert total >= max([0, *possible])


def test_many_rows_share_their_template_and_not_the_words_that_some_of_them_begin_with() -> None:
    template = list(range(100))
    (group,) = groups_of([[*template, word, 1000 + word % 3, word] for word in range(200, 240)])
    assert (len(group.members), group.num_tokens) == (40, 100)


def test_templates_with_a_common_beginning_are_kept_apart_where_that_saves_more() -> None:
    common_beginning = [5] * 20
    first, second = common_beginning + [6] * 100, common_beginning + [7] * 50
    groups = groups_of([[*template, word] for word in range(8) for template in (first, second)])
    assert [(len(group.members), group.num_tokens) for group in groups] == [(8, 120), (8, 70)]


def test_what_saves_too_little_is_not_shared() -> None:
    assert groups_of([[5] * (MIN_SHARED_TOKENS - 1)] * 100) == []
    assert groups_of([[5] * GROUP_COST_TOKENS] * 2) == []
    assert len(groups_of([[5] * GROUP_COST_TOKENS] * 3)) == 1
    assert groups_of([]) == groups_of([[1]]) == groups_of([[], []]) == []
