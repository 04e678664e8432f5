from gptj_batch import Failed, Generated, Labelled
from gptj_batch.backends.base import TokenCounts


def test_prompt_and_generated_tokens_are_counted_and_failures_are_not() -> None:
    counts = TokenCounts()
    for result in (
        Generated(key="a", token_ids=(1, 2, 3), finish_reason="length", num_prompt_tokens=5),
        Labelled(key="b", label_logprobs=(-1.0,), num_prompt_tokens=7),
        Failed(key="c", error="no"),
    ):
        counts = counts.plus(result)
    assert counts == TokenCounts(num_prompt_tokens=12, num_generated_tokens=3)
