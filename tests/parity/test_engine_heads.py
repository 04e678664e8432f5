"""The heads through the engine, packed, against transformers, each row by itself; spans against all there are."""

from typing import Any

import pytest
import torch

from gptj_batch import Classified, ClassifyRequest, SpanLogits, SpanRequest
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.tasks.spans import SpanScores, Window

SHAPES = ({"n_embd": 128, "n_head": 2, "rotary_dim": 16}, {"n_embd": 512, "n_head": 2, "rotary_dim": 64})


def prompts(oracle: Any) -> list[list[int]]:
    return [oracle.tokens(1, length)["input_ids"][0].tolist() for length in (1, 2, 9, 30, 48, 17, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("max_step_tokens", [1, 64, 1024])
@pytest.mark.parametrize("num_labels", [1, 5])
def test_class_logits_equal_transformers_whoever_shares_the_pass(
    oracle: Any, shape: dict[str, int], max_step_tokens: int, num_labels: int
) -> None:
    pair = oracle.pair("GPTJForSequenceClassification", num_labels=num_labels, **shape)
    engine = Engine(pair.ours, EngineConfig(max_step_tokens=max_step_tokens))
    rows = prompts(oracle)
    for row, result in zip(
        rows, engine.run([ClassifyRequest(key="a", prompt_token_ids=row) for row in rows]), strict=True
    ):
        assert isinstance(result, Classified)
        with torch.no_grad():
            expected = pair.theirs(torch.tensor([row])).logits[0].tolist()
        assert result.logits == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("max_step_tokens", [1, 64, 1024])
def test_span_logits_equal_transformers_whoever_shares_the_pass(
    oracle: Any, shape: dict[str, int], max_step_tokens: int
) -> None:
    pair = oracle.pair("GPTJForQuestionAnswering", **shape)
    engine = Engine(pair.ours, EngineConfig(max_step_tokens=max_step_tokens))
    requests = [SpanRequest(key="a", prompt_token_ids=row, first_token=len(row) // 3) for row in prompts(oracle)]
    for request, result in zip(requests, engine.run(requests), strict=True):
        assert isinstance(result, SpanLogits)
        with torch.no_grad():
            theirs = pair.theirs(torch.tensor([request.prompt_token_ids]))
        first = request.first_token
        assert result.start_logits == pytest.approx(theirs.start_logits[0, first:].tolist(), abs=1e-5)
        assert result.end_logits == pytest.approx(theirs.end_logits[0, first:].tolist(), abs=1e-5)


def test_the_span_chosen_is_the_best_of_transformers_logits(oracle: Any) -> None:
    pair = oracle.pair("GPTJForQuestionAnswering")
    most = 6
    for row in prompts(oracle)[2:5]:
        (result,) = Engine(pair.ours).run([SpanRequest(key="a", prompt_token_ids=row, first_token=2)])
        assert isinstance(result, SpanLogits)
        num_tokens = len(row) - 3
        scores = SpanScores(
            [Window(0, num_tokens)],
            [(result.start_logits, result.end_logits)],
            list(range(num_tokens)),
            list(range(1, num_tokens + 1)),
            most,
        )
        with torch.no_grad():
            theirs = pair.theirs(torch.tensor([row]))
        starts, ends = theirs.start_logits[0, 2:].double(), theirs.end_logits[0, 2:].double()
        spans = [(a, b) for a in range(1, num_tokens + 1) for b in range(a, min(a + most, num_tokens + 1))]
        sums = torch.stack([starts[0] + ends[0], *(starts[a] + ends[b] for a, b in spans)])
        expected = sums.softmax(0)
        (best,) = scores.best(1)
        assert (best.first + 1, best.last + 1) == spans[int(sums[1:].argmax())]
        assert best.probability == pytest.approx(float(expected[1:].max()), abs=1e-5)
        assert scores.null_probability == pytest.approx(float(expected[0]), abs=1e-5)
