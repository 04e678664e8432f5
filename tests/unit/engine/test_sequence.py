from gptj_batch import Request
from gptj_batch.engine.sequence import Sequence


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
