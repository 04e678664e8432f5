import pytest

from gptj_batch import (
    ClassifyRequest,
    EmbedRequest,
    LabelRequest,
    Request,
    SamplingParams,
    ScoreRequest,
    SpanRequest,
)
from gptj_batch.engine.limits import Limits
from gptj_batch.requests import AnyRequest

LIMITS = Limits(vocab_size=100, n_positions=20, cache_tokens=12, n_layer=3)


def refuse(prompt: list[object], max_new_tokens: int = 1) -> str | None:
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    return LIMITS.refuse(Request(key="a", prompt_token_ids=prompt, sampling=sampling))  # type: ignore[arg-type]


def refuse_labels(prompt: list[int], *labels: tuple[int, ...]) -> str | None:
    return LIMITS.refuse(LabelRequest(key="a", prompt_token_ids=prompt, label_token_ids=labels))


def test_what_just_fits_is_taken() -> None:
    assert refuse([99] * 10, max_new_tokens=3) is None
    assert refuse_labels([0] * 18, (1, 2), (3,)) is None


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "message"),
    [
        ([], 1, "must hold at least one token, got none"),
        ([1, 100], 1, "between 0 and 99 (the model's vocabulary), got 100"),
        ([-1], 1, "between 0 and 99"),
        ([None], 1, "whole numbers only"),
        (["x"], 1, "whole numbers only"),
        ([1] * 15, 6, "must not exceed n_positions (20), got 15 + 6 = 21; truncate the prompt"),
        ([1] * 15, 1, "must fit the KV cache (12 tokens), got 15 + 1 = 16; enlarge the cache"),
        ([1] * 10, 4, "must fit the KV cache (12 tokens), got 10 + 4 = 14"),
    ],
)
def test_a_request_that_can_never_run_is_told_why(prompt: list[object], max_new_tokens: int, message: str) -> None:
    assert message in (refuse(prompt, max_new_tokens) or "")


@pytest.mark.parametrize(
    ("prompt", "labels", "message"),
    [
        ([], ((1,),), "prompt_token_ids must hold at least one token"),
        ([1], (), "at least one label, got none"),
        ([1], ((1,), ()), "label_token_ids[1] must hold at least one token"),
        ([1], ((1, 100),), "label_token_ids[0] must lie between 0 and 99"),
        ([1] * 18, ((1,), (1, 2, 3)), "must not exceed n_positions (20), got 18 + 3 = 21"),
    ],
)
def test_labels_that_cannot_be_scored_are_told_why(
    prompt: list[int], labels: tuple[tuple[int, ...], ...], message: str
) -> None:
    assert message in (refuse_labels(prompt, *labels) or "")


def test_a_long_prompt_is_not_printed() -> None:
    assert len(refuse([10**9] * 1000) or "") < 250


CLASSIFIER = Limits(vocab_size=100, n_positions=20, cache_tokens=1, head="sequence-classification")
READER = Limits(vocab_size=100, n_positions=20, cache_tokens=1, head="question-answering")
HEADLESS = Limits(vocab_size=100, n_positions=20, cache_tokens=1, head="none")


@pytest.mark.parametrize(
    ("limits", "request_", "message"),
    [
        (CLASSIFIER, ClassifyRequest(key="a", prompt_token_ids=[1] * 20), None),
        (CLASSIFIER, ClassifyRequest(key="a", prompt_token_ids=[1] * 21), "must not exceed n_positions (20), got 21"),
        (CLASSIFIER, ClassifyRequest(key="a", prompt_token_ids=[]), "must hold at least one token"),
        (CLASSIFIER, Request(key="a", prompt_token_ids=[1]), "a Request needs a model with a causal-lm head, and this"),
        (LIMITS, ClassifyRequest(key="a", prompt_token_ids=[1]), "ClassifyRequest needs a model with a sequence-class"),
        (READER, SpanRequest(key="a", prompt_token_ids=[1, 2], first_token=1), None),
        (READER, SpanRequest(key="a", prompt_token_ids=[1, 2], first_token=2), "one of the 2 prompt tokens, got 2"),
        (READER, SpanRequest(key="a", prompt_token_ids=[1, 2], first_token=-1), "first_token must be the place of one"),
        (READER, SpanRequest(key="a", prompt_token_ids=[1, 100], first_token=0), "must lie between 0 and 99"),
        (LIMITS, ScoreRequest(key="a", prompt_token_ids=[1] * 20, first_token=19), None),
        (LIMITS, ScoreRequest(key="a", prompt_token_ids=[1] * 21), "must not exceed n_positions (20), got 21"),
        (LIMITS, ScoreRequest(key="a", prompt_token_ids=[1, 2, 3], first_token=3), "another before it (1 to 2), got 3"),
        (LIMITS, ScoreRequest(key="a", prompt_token_ids=[1, 2], first_token=0), "another before it (1 to 1), got 0"),
        (LIMITS, ScoreRequest(key="a", prompt_token_ids=[1]), "must hold at least two tokens to be scored, got 1"),
        (READER, ScoreRequest(key="a", prompt_token_ids=[1, 2]), "ScoreRequest needs a model with a causal-lm head"),
        (HEADLESS, ScoreRequest(key="a", prompt_token_ids=[1, 2]), "with a causal-lm head, and this one has no head;"),
        (HEADLESS, EmbedRequest(key="a", prompt_token_ids=[1]), None),
        (READER, EmbedRequest(key="a", prompt_token_ids=[1]), None),
        (LIMITS, EmbedRequest(key="a", prompt_token_ids=[1] * 20, layer=3), None),
        (LIMITS, EmbedRequest(key="a", prompt_token_ids=[1], layer=-4), None),
        (LIMITS, EmbedRequest(key="a", prompt_token_ids=[1] * 21), "must not exceed n_positions (20), got 21"),
        (
            LIMITS,
            EmbedRequest(key="a", prompt_token_ids=[1], layer=4),
            "layer must lie between -4 and 3 (0 the embedding",
        ),
        (LIMITS, EmbedRequest(key="a", prompt_token_ids=[1], layer=-5), "negative from the end), got -5"),
    ],
)
def test_a_head_takes_its_own_requests(limits: Limits, request_: AnyRequest, message: str | None) -> None:
    problem = limits.refuse(request_)
    assert problem is None if message is None else message in (problem or "")
