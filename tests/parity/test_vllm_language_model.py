"""A causal language model on vLLM answers as the native engine does, in float32."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from gptj_batch import Failed, Generated, Labelled, LabelRequest, Request, SamplingParams
from gptj_batch.requests import AnyRequest, EmbedRequest, ScoreRequest
from gptj_batch.results import AnyResult, Scored
from tests.parity.on_vllm import (
    END_OF_TEXT,
    N_POSITIONS,
    Draw,
    both,
    largest_difference,
    needs_vllm,
    running,
    save_checkpoint,
)

pytestmark = [needs_vllm, pytest.mark.timeout(900)]

TOLERANCE = 1e-4
SHARED = Draw(1).tokens(40)  # more than a block of the KV cache
LABELS = ((5, 6), (5, 7, 8), (9,), (10, 11, 12, 13))


def has_three(generated: Sequence[int]) -> bool:
    return len(generated) >= 3


def has_one(generated: Sequence[int]) -> bool:
    return True


def broken(generated: Sequence[int]) -> bool:
    raise KeyError("a record's text")


def requests() -> dict[str, list[AnyRequest]]:
    draw = Draw()

    def ask(key: str, length: int = 7, stop: Any = None, shared: Sequence[int] = (), **sampling: Any) -> Request:
        params = SamplingParams(**{"max_new_tokens": 12, "logprobs": True, **sampling})
        return Request(key=key, prompt_token_ids=[*shared, *draw.tokens(length)], sampling=params, stop=stop)

    return {
        "greedy": [ask(f"g{n}", 3 + 5 * n) for n in range(12)],
        "shared": [ask(f"s{n}", 4 + n, shared=SHARED) for n in range(6)],
        "ended": [ask(f"e{n}", 5 + n, stop_token_ids=tuple(range(2, 97, 4)), max_new_tokens=20) for n in range(6)],
        "kept going": [
            ask(f"m{n}", 5 + n, stop_token_ids=tuple(range(2, 97, 4)), min_new_tokens=9, max_new_tokens=20)
            for n in range(4)
        ],
        "penalised": [ask(f"p{n}", 5 + n, repetition_penalty=1.7) for n in range(4)],
        "stopped": [ask("c0", stop=has_three), ask("c1", stop=has_one, min_new_tokens=6), ask("c2", stop=has_one)],
        "broken": [ask("b0", stop=broken)],
        "labels": [
            LabelRequest(key=f"l{n}", prompt_token_ids=[*SHARED, *draw.tokens(3 + n)], label_token_ids=LABELS)
            for n in range(6)
        ],
        "all tokens": [
            LabelRequest(
                key="v", prompt_token_ids=draw.tokens(9), label_token_ids=tuple((token,) for token in range(2, 97))
            )
        ],
        "scores": [
            ScoreRequest(key=f"t{n}", prompt_token_ids=draw.tokens(8 + 9 * n), first_token=1 + n) for n in range(6)
        ],
        "whole context": [
            ScoreRequest(key="w0", prompt_token_ids=draw.tokens(N_POSITIONS)),
            ScoreRequest(key="w1", prompt_token_ids=draw.tokens(2)),
            ask("w2", N_POSITIONS - 5, max_new_tokens=5),
            LabelRequest(key="w3", prompt_token_ids=draw.tokens(N_POSITIONS - 4), label_token_ids=LABELS),
        ],
        "too long": [ask("x0", N_POSITIONS - 4, max_new_tokens=5), ask("x1", 0)],
        "not vLLM's": [
            ask("n0", num_beams=2),
            ask("n1", temperature=0.001),
            EmbedRequest(key="n2", prompt_token_ids=draw.tokens(4)),
        ],
    }


Answers = dict[str, tuple[list[AnyResult], list[AnyResult]]]


SIZES = [pytest.param(64, marks=pytest.mark.vllm_first), 128, 256]


@pytest.fixture(scope="module", params=SIZES, ids="head size {}".format)
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = save_checkpoint(tmp_path_factory.mktemp("model"), head_size=request.param)
    of_kind = requests()
    native, vllm = both(folder, [one for many in of_kind.values() for one in many])
    found: Answers = {}
    for name, many in of_kind.items():
        found[name] = (native[: len(many)], vllm[: len(many)])
        del native[: len(many)], vllm[: len(many)]
    return found


@pytest.mark.parametrize("name", ["greedy", "shared", "ended", "kept going", "penalised", "stopped"])
def test_greedy_tokens_reasons_and_logprobs_are_the_native_ones(answers: Answers, name: str) -> None:
    native, vllm = (cast(list[Generated], side) for side in answers[name])
    assert [(one.token_ids, one.finish_reason) for one in vllm] == [
        (one.token_ids, one.finish_reason) for one in native
    ]
    logprobs = [[one.logprobs or () for one in side] for side in (native, vllm)]
    assert largest_difference(*logprobs) < TOLERANCE


def test_both_ways_to_end_were_seen(answers: Answers) -> None:
    seen = {cast(Generated, one).finish_reason for name in ("ended", "stopped", "greedy") for one in answers[name][1]}
    assert seen == {"stop", "length"}


def test_no_stop_is_heeded_before_min_new_tokens(answers: Answers) -> None:
    assert all(len(cast(Generated, one).token_ids) >= 9 for one in answers["kept going"][1])
    assert len(cast(Generated, answers["stopped"][1][1]).token_ids) == 6


def test_a_stop_condition_that_raises_is_its_rows_error_and_quotes_nothing(answers: Answers) -> None:
    (native,), (vllm,) = answers["broken"]
    assert isinstance(vllm, Failed) and vllm == native and "record" not in vllm.error


@pytest.mark.parametrize("name", ["labels", "all tokens"])
def test_label_likelihoods_are_the_native_ones(answers: Answers, name: str) -> None:
    native, vllm = (cast(list[Labelled], side) for side in answers[name])
    assert largest_difference(*[[one.label_logprobs for one in side] for side in (native, vllm)]) < TOLERANCE


def test_token_likelihoods_are_the_native_ones(answers: Answers) -> None:
    native, vllm = (cast(list[Scored], side) for side in answers["scores"])
    assert largest_difference(*[[one.token_logprobs for one in side] for side in (native, vllm)]) < TOLERANCE


def test_the_whole_context_can_be_used(answers: Answers) -> None:
    native, vllm = answers["whole context"]
    assert [type(one) for one in vllm] == [Scored, Scored, Generated, Labelled] == [type(one) for one in native]
    pairs = zip(cast(list[Scored], native[:2]), cast(list[Scored], vllm[:2]), strict=True)
    assert largest_difference(*zip(*((a.token_logprobs, b.token_logprobs) for a, b in pairs), strict=True)) < TOLERANCE
    assert cast(Generated, vllm[2]).token_ids == cast(Generated, native[2]).token_ids


def test_what_does_not_fit_fails_alone_and_in_the_same_words(answers: Answers) -> None:
    native, vllm = answers["too long"]
    assert [type(one) for one in vllm] == [Failed, Failed] and vllm == native


def test_what_vllm_cannot_do_fails_alone_and_names_the_native_backend(answers: Answers) -> None:
    _, vllm = answers["not vLLM's"]
    assert all(isinstance(one, Failed) for one in vllm)
    beams, temperature, embed = (cast(Failed, one).error for one in vllm)
    assert "beam search" in beams and "set backend.kind to native" in beams
    assert "from 0.01 to 2.0, got 0.001" in temperature
    assert "either embeds or generates" in embed


def test_prompt_tokens_are_counted_alike(answers: Answers) -> None:
    for name in ("greedy", "labels", "scores", "whole context"):
        native, vllm = answers[name]
        counts = [[cast(Generated, one).num_prompt_tokens for one in side] for side in (native, vllm)]
        assert counts[0] == counts[1]


def test_end_of_text_ends_unless_it_is_ignored(tmp_path_factory: pytest.TempPathFactory) -> None:
    import torch

    from gptj_batch.model import GPTJForCausalLM

    folder = save_checkpoint(tmp_path_factory.mktemp("model"))
    model = GPTJForCausalLM.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        model.lm_head.bias[END_OF_TEXT] += 100.0
    model.save_pretrained(folder)
    asked = [
        Request(key=key, prompt_token_ids=[5, 6, 7], sampling=SamplingParams(max_new_tokens=4, **settings))
        for key, settings in (("a", {}), ("b", {"ignore_eos": True}), ("c", {"min_new_tokens": 2}))
    ]
    native, vllm = both(folder, asked)
    assert vllm == native
    assert cast(Generated, vllm[0]).token_ids == (END_OF_TEXT,)
    assert cast(Generated, vllm[1]).token_ids == (END_OF_TEXT,) * 4


def test_a_model_split_in_two_answers_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = save_checkpoint(tmp_path_factory.mktemp("model"), head_size=128)
    draw = Draw(9)
    asked = [Request(key=str(n), prompt_token_ids=draw.tokens(5 + 4 * n)) for n in range(6)]
    with running("native", folder) as native, running("vllm", folder, tensor_parallel=2) as vllm:
        assert vllm.describe()["tensor_parallel"] == 2
        assert vllm.run(asked) == native.run(asked)
