from pathlib import Path

import pytest
import torch

from gptj_batch import (
    Classified,
    ClassifyRequest,
    Embedded,
    EmbedRequest,
    Failed,
    Labelled,
    LabelRequest,
    ScoreRequest,
    SpanLogits,
    SpanRequest,
)
from gptj_batch.backends import make_backend
from gptj_batch.engine import Engine, EngineConfig, token_logprobs
from gptj_batch.engine.row import Row
from gptj_batch.errors import CheckpointError
from gptj_batch.model import (
    MODEL_CLASSES,
    GPTJConfig,
    GPTJForCausalLM,
    GPTJForQuestionAnswering,
    GPTJForSequenceClassification,
    GPTJWithoutHead,
    HeadModel,
)
from gptj_batch.requests import HeadRequest, Request
from gptj_batch.results import HeadResult

from .single_passes import single_pass

PROMPTS = ([3, 4, 5, 6, 7, 8], [9], [10, 11, 12], [20] * 17)


def headed(kind: type[HeadModel], model: GPTJForCausalLM, **settings: int) -> HeadModel:
    torch.manual_seed(1)
    made = kind(GPTJConfig(**{**model.config.to_dict(), **settings})).eval()
    made.transformer.load_state_dict(model.transformer.state_dict())
    return made


@pytest.fixture(scope="module")
def classifier(model: GPTJForCausalLM) -> HeadModel:
    return headed(GPTJForSequenceClassification, model, num_labels=5)


@pytest.fixture(scope="module")
def reader(model: GPTJForCausalLM) -> HeadModel:
    return headed(GPTJForQuestionAnswering, model)


def answers(model: HeadModel, requests: list[HeadRequest], max_step_tokens: int = 100) -> list[HeadResult | Failed]:
    waiting = single_pass(model, max_step_tokens)
    for uid, request in enumerate(requests):
        waiting.add(Row(uid, request))
    found: dict[int, HeadResult | Failed] = {}
    while waiting.has_unfinished:
        found |= {row.uid: result for row, result in waiting.step()}
    return [found[uid] for uid in range(len(requests))]


def test_every_head_has_a_class() -> None:
    assert [kind.__name__ for kind in MODEL_CLASSES.values()] == [
        "GPTJForCausalLM",
        "GPTJForSequenceClassification",
        "GPTJForQuestionAnswering",
        "GPTJWithoutHead",
    ]


def test_scores_do_not_depend_on_how_many_rows_the_head_takes_at_a_time(
    model: GPTJForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = LabelRequest(key="a", prompt_token_ids=[3, 4, 5], label_token_ids=((5, 6, 7), (5, 6, 8, 9), (4,)))
    (whole,) = answers(model, [request])
    monkeypatch.setattr(token_logprobs, "MAX_LOGIT_ROWS", 2)
    monkeypatch.setattr(token_logprobs, "MAX_NORMALISER_ROWS", 1)
    (piecewise,) = answers(model, [request])
    assert isinstance(whole, Labelled) and isinstance(piecewise, Labelled)
    assert piecewise.label_logprobs == pytest.approx(whole.label_logprobs, abs=1e-5)


@pytest.mark.parametrize("max_step_tokens", [1, 8, 100])
def test_a_classifier_reads_the_last_token_of_every_row(classifier: HeadModel, max_step_tokens: int) -> None:
    results = answers(classifier, [ClassifyRequest(key="a", prompt_token_ids=p) for p in PROMPTS], max_step_tokens)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert isinstance(result, Classified) and result.num_prompt_tokens == len(prompt)
        with torch.no_grad():
            expected = classifier(torch.tensor([prompt])).logits[0].tolist()
        assert result.logits == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("max_step_tokens", [1, 8, 100])
def test_spans_are_read_from_the_first_token_asked_for(reader: HeadModel, max_step_tokens: int) -> None:
    requests = [SpanRequest(key="a", prompt_token_ids=p, first_token=len(p) // 2) for p in PROMPTS]
    for request, result in zip(requests, answers(reader, list(requests), max_step_tokens), strict=True):
        assert isinstance(result, SpanLogits)
        with torch.no_grad():
            dense = reader(torch.tensor([request.prompt_token_ids]))
        assert result.start_logits == pytest.approx(dense.start_logits[0, request.first_token :].tolist(), abs=1e-5)
        assert result.end_logits == pytest.approx(dense.end_logits[0, request.first_token :].tolist(), abs=1e-5)


@pytest.mark.parametrize("max_step_tokens", [1, 8, 100])
def test_any_model_embeds_beside_what_its_head_is_asked(
    model: GPTJForCausalLM, classifier: HeadModel, reader: HeadModel, max_step_tokens: int
) -> None:
    embed = [EmbedRequest(key="a", prompt_token_ids=p, layer=place % 2 - 1) for place, p in enumerate(PROMPTS)]
    others = (
        (classifier, [ClassifyRequest(key="b", prompt_token_ids=p) for p in PROMPTS]),
        (reader, [SpanRequest(key="b", prompt_token_ids=p, first_token=0) for p in PROMPTS]),
        (headed(GPTJWithoutHead, model), []),
    )
    expected = answers(model, list(embed))
    for other, asked in others:
        mixed = answers(other, [*embed[:2], *asked, *embed[2:]], max_step_tokens)
        for result, wanted in zip([*mixed[:2], *mixed[-2:]], expected, strict=True):
            assert isinstance(result, Embedded) and isinstance(wanted, Embedded)
            assert list(result.vector) == pytest.approx(list(wanted.vector), abs=1e-5)
        alone = answers(other, list(asked), max_step_tokens)
        for result, wanted in zip(mixed[2:-2], alone, strict=True):
            of_head = [
                (one.logits if isinstance(one, Classified) else one.start_logits)
                for one in (result, wanted)
                if isinstance(one, Classified | SpanLogits)
            ]
            assert of_head[0] == pytest.approx(of_head[1], abs=1e-5)


@pytest.mark.parametrize("kind", ["GPTJModel", "GPTJForCausalLM", "GPTJForSequenceClassification"])
def test_a_body_is_read_of_a_checkpoint_of_any_class(
    model: GPTJForCausalLM, classifier: HeadModel, tmp_path: Path, kind: str
) -> None:
    stored = {"GPTJModel": model.transformer, "GPTJForCausalLM": model}.get(kind, classifier)
    stored.save_pretrained(tmp_path)
    request = EmbedRequest(key="a", prompt_token_ids=[3, 4, 5])
    backend = make_backend("native", model_path=tmp_path, head="none", dtype="float32", device="cpu")
    result, refused = backend.run([request, Request(key="b", prompt_token_ids=[3])])
    backend.close()
    (expected,) = answers(model, [request])
    assert isinstance(result, Embedded) and isinstance(expected, Embedded)
    assert list(result.vector) == pytest.approx(list(expected.vector), abs=1e-5)
    assert isinstance(refused, Failed) and "and this one has no head" in refused.error


def test_what_is_not_finite_fails_alone(model: GPTJForCausalLM, classifier: HeadModel, reader: HeadModel) -> None:
    kinds = ((classifier, ClassifyRequest), (reader, SpanRequest), (model, ScoreRequest), (model, EmbedRequest))
    for model, kind in kinds:
        more = {"first_token": 0} if kind is SpanRequest else {}
        requests = [kind(key="a", prompt_token_ids=ids, **more) for ids in ([3, 4, 5], [3, 60, 5])]
        weight = model.transformer.wte.weight
        with torch.no_grad():
            kept = weight[60].clone()
            weight[60] = torch.nan
            good, bad = answers(model, requests)
            weight[60] = kept
        assert not isinstance(good, Failed)
        assert isinstance(bad, Failed) and "not finite; try a wider dtype" in bad.error


def test_an_engine_without_a_language_model_has_no_cache_and_refuses_to_generate(classifier: HeadModel) -> None:
    engine = Engine(classifier, EngineConfig(max_step_tokens=10, kv_cache_bytes=1))
    assert engine.runner is None
    good, generate, label = engine.run(
        [
            ClassifyRequest(key="a", prompt_token_ids=[3, 4]),
            Request(key="b", prompt_token_ids=[3]),
            LabelRequest(key="c", prompt_token_ids=[3], label_token_ids=((4,),)),
        ]
    )
    assert isinstance(good, Classified) and not engine.has_unfinished
    for refused in (generate, label):
        assert isinstance(refused, Failed) and "needs a model with a causal-lm head" in refused.error


def test_a_request_of_a_head_can_be_cancelled(reader: HeadModel) -> None:
    engine = Engine(reader)
    engine.add(SpanRequest(key="a", prompt_token_ids=[3, 4], first_token=0))
    assert engine.cancel("a") and not engine.has_unfinished


def test_a_backend_loads_the_head_it_is_asked_for(classifier: HeadModel, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    backend = make_backend("native", model_path=tmp_path, head="sequence-classification", dtype="float32", device="cpu")
    request = ClassifyRequest(key="a", prompt_token_ids=[3, 4])
    (result,) = backend.run([request])
    (expected,) = answers(classifier, [request])
    assert isinstance(result, Classified) and isinstance(expected, Classified)
    assert result.logits == pytest.approx(expected.logits, abs=1e-5)
    assert backend.describe()["dtype"] == "float32" and backend.counts().num_prompt_tokens == 2
    backend.close()
    with pytest.raises(CheckpointError, match="lm_head"):
        make_backend("native", model_path=tmp_path, head="causal-lm", dtype="float32", device="cpu")
