import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gptj_batch import (
    Classified,
    ClassifyRequest,
    Embedded,
    EmbedRequest,
    Failed,
    Generated,
    Labelled,
    LabelRequest,
    Request,
    SamplingParams,
    Scored,
    ScoreRequest,
    SpanLogits,
    SpanRequest,
)
from gptj_batch.backends.fake import FakeBackend
from gptj_batch.errors import BackendError
from gptj_batch.requests import Allowed


def make_request(key: str = "a", prompt: tuple[int, ...] = (1, 2), stop: Any = None, **sampling: Any) -> Request:
    return Request(key=key, prompt_token_ids=prompt, sampling=SamplingParams(**sampling), stop=stop)


def generate(request: Request) -> Generated:
    (result,) = FakeBackend(vocab_size=50).run([request])
    assert isinstance(result, Generated)
    return result


def test_the_answer_is_a_function_of_the_request() -> None:
    requests = [make_request(key) for key in "abc"] + [make_request(prompt=(1, 3))]
    results = FakeBackend().run(requests)
    assert [result.key for result in results] == ["a", "b", "c", "a"]
    assert generate(requests[0]).token_ids == generate(requests[1]).token_ids
    assert generate(requests[0]).token_ids != generate(requests[3]).token_ids


def test_a_seed_matters_when_sampling_only() -> None:
    assert generate(make_request(seed=1)).token_ids == generate(make_request(seed=2)).token_ids
    warm = {"temperature": 1.0}
    assert generate(make_request(seed=1, **warm)).token_ids != generate(make_request(seed=2, **warm)).token_ids


def test_beam_search_gives_as_many_sequences_as_asked_for_best_first() -> None:
    best = generate(make_request(num_beams=4, num_return_sequences=3))
    scores = [one.score for one in (best, *best.alternatives) if one.score is not None]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert len({one.token_ids for one in (best, *best.alternatives)}) == 3


def test_tokens_lie_in_the_vocabulary_and_are_as_many_as_asked_for() -> None:
    result = generate(make_request(max_new_tokens=30, logprobs=True))
    assert len(result.token_ids) == 30
    assert all(0 <= token < 50 for token in result.token_ids)
    assert (result.finish_reason, result.num_prompt_tokens) == ("length", 2)
    assert result.logprobs is not None
    assert len(result.logprobs) == 30
    assert max(result.logprobs) <= 0


def test_stop_conditions_are_honoured() -> None:
    def stop(generated: Sequence[int]) -> bool:
        return len(generated) >= 3

    assert len(generate(make_request(stop=stop)).token_ids) == 3
    assert len(generate(make_request(stop=stop, min_new_tokens=5)).token_ids) == 5
    fourth = generate(make_request()).token_ids[3]
    stopped = generate(make_request(stop_token_ids=(fourth,)))
    assert (stopped.token_ids[-1], stopped.finish_reason) == (fourth, "stop")


def test_labels_get_a_likelihood_each() -> None:
    request = LabelRequest(key="l", prompt_token_ids=(1, 2), label_token_ids=((3,), (4, 5), (3,)))
    (result,) = FakeBackend().run([request])
    assert isinstance(result, Labelled)
    assert result.label_logprobs[0] == result.label_logprobs[2] != result.label_logprobs[1]
    assert max(result.label_logprobs) < 0


def test_heads_get_a_logit_per_label_or_token() -> None:
    fake = FakeBackend(num_labels=3)
    (classified,) = fake.run([ClassifyRequest(key="c", prompt_token_ids=(1, 2))])
    assert isinstance(classified, Classified) and len(set(classified.logits)) == 3
    (span,) = fake.run([SpanRequest(key="s", prompt_token_ids=(1, 2, 3), first_token=1)])
    assert isinstance(span, SpanLogits)
    assert len(span.start_logits) == len(span.end_logits) == 2 and span.start_logits != span.end_logits
    (failed,) = fake.run([SpanRequest(key="s", prompt_token_ids=(1, 2, 3), first_token=3)])
    assert isinstance(failed, Failed)


def test_texts_get_a_likelihood_per_token_that_looks_back_only() -> None:
    requests = [ScoreRequest(key="s", prompt_token_ids=ids, first_token=1) for ids in ((1, 2, 3, 4), (1, 2, 3, 5))]
    one, other = FakeBackend().run(requests)
    assert isinstance(one, Scored) and isinstance(other, Scored)
    assert len(one.token_logprobs) == 3 and max(one.token_logprobs) <= 0
    assert one.token_logprobs[:2] == other.token_logprobs[:2] and one.token_logprobs[2] != other.token_logprobs[2]
    (failed,) = FakeBackend().run([ScoreRequest(key="s", prompt_token_ids=(1,), first_token=1)])
    assert isinstance(failed, Failed)


def test_texts_get_a_vector_as_wide_as_the_model() -> None:
    requests = [EmbedRequest(key="e", prompt_token_ids=(1, 2), normalize=normalize) for normalize in (False, True)]
    plain, normal = FakeBackend(width=24).run(requests)
    assert isinstance(plain, Embedded) and isinstance(normal, Embedded)
    assert len(plain.vector) == len(normal.vector) == 24 and plain.vector.typecode == "f"
    length = math.hypot(*plain.vector)
    assert list(normal.vector) == pytest.approx([value / length for value in plain.vector])


def test_what_an_engine_would_refuse_fails_in_its_place() -> None:
    def broken(generated: Sequence[int]) -> bool:
        raise ValueError

    results = FakeBackend().run(
        [
            make_request(prompt=()),
            LabelRequest(key="l", prompt_token_ids=(1,), label_token_ids=()),
            LabelRequest(key="l", prompt_token_ids=(1,), label_token_ids=((),)),
            make_request(stop=broken),
            make_request(),
        ]
    )
    assert [type(result) for result in results] == [Failed] * 4 + [Generated]


def test_tokens_are_counted() -> None:
    backend = FakeBackend()
    backend.run([make_request(max_new_tokens=3), make_request(prompt=())])
    assert (backend.counts().num_prompt_tokens, backend.counts().num_generated_tokens) == (2, 3)
    assert backend.describe()["kind"] == "fake"


def test_a_closed_backend_refuses() -> None:
    backend = FakeBackend()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run([make_request()])


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from gptj_batch.backends import make_backend; "
        "make_backend('fake', model_path='nowhere'); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class OneOf:
    """Two tokens of a few, in either form; an end after the first is permitted."""

    def __init__(self, allowed: Allowed) -> None:
        self.allowed_tokens = allowed
        self.seen: list[int] = []

    def start(self) -> "OneOf":
        return OneOf(self.allowed_tokens)

    def allowed(self) -> Allowed:
        return () if self.is_complete else self.allowed_tokens

    def accept(self, token_id: int) -> None:
        if token_id == 13:
            raise ValueError("what the record says")
        self.seen.append(token_id)

    @property
    def may_end(self) -> bool:
        return len(self.seen) >= 1

    @property
    def is_complete(self) -> bool:
        return len(self.seen) == 2


@pytest.mark.parametrize("allowed", [(3, 70, 9), (1 << 3 | 1 << 9 | 1 << 70).to_bytes(9, "little")])
def test_constraints_are_followed(allowed: Allowed) -> None:
    requests = [replace(make_request(prompt=(number,)), constraint=OneOf(allowed)) for number in range(40)]
    results = FakeBackend().run(requests)
    assert all(isinstance(result, Generated) and result.finish_reason == "stop" for result in results)
    found = {result.token_ids for result in results if isinstance(result, Generated)}
    assert {len(token_ids) for token_ids in found} == {1, 2}
    assert {token for token_ids in found for token in token_ids} == {3, 70, 9}
    assert results == FakeBackend().run(requests)
    cut = FakeBackend().run([replace(make_request(max_new_tokens=2, min_new_tokens=2), constraint=OneOf(allowed))])
    assert isinstance(cut[0], Generated) and len(cut[0].token_ids) == 2


def test_a_constraint_that_raises_or_leaves_nothing_fails_its_request() -> None:
    results = FakeBackend().run([replace(make_request(), constraint=OneOf(allowed)) for allowed in ((13,), ())])
    errors = [result.error for result in results if isinstance(result, Failed)]
    assert errors == [
        "the request's constraint raised ValueError; correct it",
        "the request's constraint allows no token after 0 generated ones",
    ]
