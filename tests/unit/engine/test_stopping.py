from collections.abc import Sequence as Ordered

import pytest

from gptj_batch import Request, SamplingParams
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.stopping import finish_reason, must_go_on, stop_token_ids
from gptj_batch.requests import StopCondition

EOS = (1,)


def after(tokens: list[int], stop: StopCondition | None = None, **sampling: object) -> Sequence:
    params = SamplingParams(**{"max_new_tokens": 4, **sampling})  # type: ignore[arg-type]
    sequence = Sequence(0, Request(key="a", prompt_token_ids=[1], sampling=params, stop=stop))
    for token in tokens:
        sequence.append(token)
    return sequence


@pytest.mark.parametrize(
    ("tokens", "sampling", "reason"),
    [
        ([5], {}, None),
        ([5, 6, 7, 8], {}, "length"),
        ([5, 1], {}, "stop"),
        ([5, 6, 7, 1], {}, "stop"),
        ([5, 1], {"ignore_eos": True}, None),
        ([5, 9], {"stop_token_ids": (9,)}, "stop"),
        ([5, 9], {"stop_token_ids": (9,), "ignore_eos": True}, "stop"),
        ([9, 5], {"stop_token_ids": (9,)}, None),
        ([5, 1], {"min_new_tokens": 3}, None),
        ([5, 6, 1], {"min_new_tokens": 3}, "stop"),
    ],
)
def test_reasons(tokens: list[int], sampling: dict[str, object], reason: str | None) -> None:
    assert finish_reason(after(tokens, **sampling), EOS) == reason


def test_any_of_several_end_tokens_stops() -> None:
    assert finish_reason(after([7]), (3, 7)) == "stop"


def test_the_requests_own_condition_sees_the_generated_tokens_only() -> None:
    seen: list[list[int]] = []

    def stop(generated: Ordered[int]) -> bool:
        seen.append(list(generated))
        return generated[-1] == 6

    assert finish_reason(after([5], stop), EOS) is None
    assert finish_reason(after([5, 6], stop), EOS) == "stop"
    assert seen == [[5], [5, 6]]


def test_the_requests_own_condition_is_asked_but_not_heeded_before_min_new_tokens() -> None:
    calls: list[int] = []

    def stop(generated: Ordered[int]) -> bool:
        calls.append(len(generated))
        return True

    assert finish_reason(after([5], stop, min_new_tokens=2), EOS) is None
    assert finish_reason(after([5, 6], stop, min_new_tokens=2), EOS) == "stop"
    assert calls == [1, 2]


def test_a_sequence_must_go_on_until_min_new_tokens() -> None:
    assert must_go_on(after([5], min_new_tokens=2))
    assert not must_go_on(after([5, 6], min_new_tokens=2))


def test_ignoring_the_end_of_text_leaves_the_stop_tokens() -> None:
    assert stop_token_ids(SamplingParams(stop_token_ids=(9,)), EOS) == (1, 9)
    assert stop_token_ids(SamplingParams(stop_token_ids=(9,), ignore_eos=True), EOS) == (9,)
