import math
from array import array
from typing import Any

import pytest

from gptj_batch import Failed, Generated, Labelled, Request, SamplingParams
from gptj_batch.requests import ScoreRequest
from gptj_batch.results import AnyResult, Classified, Embedded, Scored, SpanLogits
from pipelines.agreement import Agreement, Difference, comparable, compare


def generated(tokens: list[int], logprobs: list[float] | None = None, reason: Any = "length") -> Generated:
    return Generated(
        key="k",
        token_ids=tuple(tokens),
        finish_reason=reason,
        num_prompt_tokens=1,
        logprobs=tuple(logprobs if logprobs is not None else [-1.0] * len(tokens)),
    )


def labelled(*logprobs: float) -> Labelled:
    return Labelled(key="k", label_logprobs=logprobs, num_prompt_tokens=1)


def test_sampling_is_compared_greedily_and_with_logprobs() -> None:
    request = Request(key="k", prompt_token_ids=[1], sampling=SamplingParams(temperature=0.8, max_new_tokens=3))
    changed = comparable(request)
    assert isinstance(changed, Request)
    assert (changed.sampling.temperature, changed.sampling.logprobs, changed.sampling.max_new_tokens) == (0.0, True, 3)
    score = ScoreRequest(key="k", prompt_token_ids=[1, 2])
    assert comparable(score) is score


def test_the_first_differing_token_is_found_and_logprobs_count_up_to_it() -> None:
    found = compare(generated([1, 2, 3], [-1.0, -1.0, -1.0]), generated([1, 2, 4], [-1.25, -1.0, -9.0]), 1e-4)
    assert found == Difference(agrees=False, first_token=2, largest=0.25)


def test_a_shorter_answer_differs_where_it_ends() -> None:
    found = compare(generated([1, 2]), generated([1], reason="stop"), 1e-4)
    assert (found.agrees, found.first_token) == (False, 1)


def test_the_same_tokens_agree_unless_they_ended_otherwise() -> None:
    assert compare(generated([1, 2]), generated([1, 2], [-1.0, -2.0]), 1e-4) == Difference(agrees=True, largest=1.0)
    assert not compare(generated([1]), generated([1], reason="stop"), 1e-4).agrees


def test_relative_likelihoods_of_labels_are_compared_as_such() -> None:
    assert compare(labelled(-5.0, -6.0), labelled(-1.0, -2.5), 1e-4) == Difference(agrees=True, largest=0.5)
    assert not compare(labelled(-5.0, -6.0), labelled(-6.0, -5.0), 1e-4).agrees


def test_a_near_tie_may_fall_either_way() -> None:
    assert compare(labelled(-5.0, -5.00001), labelled(-5.00001, -5.0), 1e-4).agrees


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            Scored(key="k", token_logprobs=(-1.0, -2.0), num_prompt_tokens=3),
            Scored(key="k", token_logprobs=(-1.0, -2.1), num_prompt_tokens=3),
        ),
        (
            Embedded(key="k", vector=array("f", [1.0, 0.0]), num_prompt_tokens=3),
            Embedded(key="k", vector=array("f", [0.9, 0.0]), num_prompt_tokens=3),
        ),
    ],
)
def test_likelihoods_and_embeddings_must_be_within_the_tolerance(ours: AnyResult, theirs: AnyResult) -> None:
    assert compare(ours, theirs, 0.11).agrees and not compare(ours, theirs, 0.05).agrees
    assert compare(ours, theirs, 0.05).largest == pytest.approx(0.1)


def test_classes_and_spans_must_be_chosen_alike() -> None:
    one, other = (Classified(key="k", logits=logits, num_prompt_tokens=1) for logits in ((1.0, 0.0), (0.0, 1.0)))
    assert compare(one, one, 1e-4).agrees and not compare(one, other, 1e-4).agrees
    spans = [
        SpanLogits(key="k", start_logits=(1.0, 0.0), end_logits=ends, num_prompt_tokens=1)
        for ends in ((0.0, 1.0), (1.0, 0.0))
    ]
    assert not compare(*spans, 1e-4).agrees


def test_numbers_that_are_not_as_many_never_agree() -> None:
    found = compare(labelled(-1.0, -2.0), labelled(-1.0), 1e-4)
    assert not found.agrees and found.largest == math.inf


def test_two_failures_agree_and_one_does_not() -> None:
    failed = Failed(key="k", error="too long")
    assert compare(failed, Failed(key="k", error="other words"), 1e-4).agrees
    assert not compare(failed, generated([1]), 1e-4).agrees


def test_rows_are_added_up() -> None:
    agreement = Agreement(tolerance=1e-4)
    agreement.add("a", [generated([1, 2])], [generated([1, 2])])
    agreement.add("b", [generated([1, 2]), generated([7])], [generated([1, 3]), generated([7], [-1.5])])
    agreement.add("c", [Failed(key="c", error="x")], [generated([1])])
    assert agreement.share == 1 / 3
    assert agreement.text(("native", "vllm")).splitlines() == [
        "rows that agree: 1 of 3 (33.3%)",
        "first differing token: token 2 of row b",
        "largest difference of a log-probability, logit or coordinate: 0.5",
        "failed rows: native 1, vllm 0",
        "rows that differ: b, c",
    ]


def test_no_rows_agree() -> None:
    assert Agreement(tolerance=1e-4).share == 1.0
