from typing import Any

import pytest

from gptj_batch import Request, SamplingParams
from gptj_batch.engine.sequence import Group, Sequence
from gptj_batch.requests import StopCondition


def test_a_new_sequence_has_its_whole_prompt_to_be_fed() -> None:
    sequence = Sequence(7, Request(key="a", prompt_token_ids=(5, 6, 7)))
    assert (sequence.uid, sequence.num_tokens, sequence.num_pending_tokens) == (7, 3, 3)
    assert sequence.generated_token_ids == []


def test_a_generated_token_is_fed_next() -> None:
    sequence = Sequence(0, Request(key="a", prompt_token_ids=[5, 6, 7]))
    sequence.num_cached_tokens = 3
    sequence.append(9)
    assert (sequence.token_ids, sequence.generated_token_ids) == ([5, 6, 7, 9], [9])
    assert (sequence.num_pending_tokens, sequence.num_prompt_tokens) == (1, 3)


def test_the_requests_own_prompt_is_left_alone() -> None:
    prompt = [5, 6]
    Sequence(0, Request(key="a", prompt_token_ids=prompt)).append(1)
    assert prompt == [5, 6]


@pytest.mark.parametrize(
    ("sampling", "stop", "is_sure"),
    [
        ({"ignore_eos": True}, None, True),
        ({"ignore_eos": False}, None, False),
        ({"ignore_eos": True, "stop_token_ids": (3,)}, None, False),
        ({"ignore_eos": True}, lambda generated: False, False),
    ],
)
def test_only_what_nothing_can_end_early_is_sure_of_its_length(
    sampling: dict[str, Any], stop: StopCondition | None, is_sure: bool
) -> None:
    params = SamplingParams(max_new_tokens=9, **sampling)
    sequence = Sequence(0, Request(key="a", prompt_token_ids=[5, 6, 7], sampling=params, stop=stop))
    assert sequence.runs_to_the_end == is_sure
    assert sequence.group.num_sure_tokens(sequence) == (3 + 9 - 1 if is_sure else 3)


def test_a_minimum_of_new_tokens_is_sure_to_be_fed_but_for_the_last() -> None:
    sequence = Sequence(0, Request(key="a", prompt_token_ids=[5, 6], sampling=SamplingParams(min_new_tokens=4)))
    assert sequence.group.num_sure_tokens(sequence) == 2 + 4 - 1


def test_a_group_counts_those_that_have_yet_to_split_off() -> None:
    group = Group(Sequence(0, Request(key="a", prompt_token_ids=[5])), 4)
    assert (group.size, group.num_unborn, group.reserves_all) == (4, 3, True)
