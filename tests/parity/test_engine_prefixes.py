"""Likelihoods and embeddings through the engine, with beginnings shared, against transformers, each row by itself."""

from typing import Any

import pytest
import torch

from gptj_batch import Embedded, EmbedRequest, Labelled, LabelRequest, Scored, ScoreRequest
from gptj_batch.engine import Engine, EngineConfig

LABELS = ((5, 6, 7), (5, 6, 8, 9, 10), (4,), (5,), (11, 5, 6, 7), (90,))
SHAPES = ({"n_embd": 128, "n_head": 2, "rotary_dim": 16}, {"n_embd": 512, "n_head": 2, "rotary_dim": 64})


def prompts(oracle: Any) -> list[list[int]]:
    """Return rows of two templates, one equal to a template, rows with two labels' beginnings in common, others."""
    first, second = oracle.tokens(2, 24)["input_ids"].tolist()
    tails = oracle.tokens(6, 9)["input_ids"].tolist()
    rows = [first + tail[: 3 + place] for place, tail in enumerate(tails)] + [second + tail[:5] for tail in tails]
    return [*rows, first, second[:20], tails[0], [7]]


@torch.no_grad()
def logprobs(theirs: Any, token_ids: list[int]) -> list[float]:
    """Return the log-probability of every token but the first."""
    scores = theirs(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    return [float(scores[place, token]) for place, token in enumerate(token_ids[1:])]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("max_step_tokens", [1, 64, 1024])
def test_label_likelihoods_equal_transformers_with_a_shared_beginning(
    oracle: Any, shape: dict[str, int], max_step_tokens: int
) -> None:
    pair = oracle.pair("GPTJForCausalLM", **shape)
    rows = prompts(oracle)
    engine = Engine(pair.ours, EngineConfig(max_step_tokens=max_step_tokens, num_blocks=1))
    results = engine.run([LabelRequest(key="a", prompt_token_ids=row, label_token_ids=LABELS) for row in rows])
    assert engine.single_pass.num_fed_tokens < sum(map(len, rows))
    for row, result in zip(rows, results, strict=True):
        assert isinstance(result, Labelled)
        expected = [sum(logprobs(pair.theirs, [*row, *label])[len(row) - 1 :]) for label in LABELS]
        assert result.label_logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("max_step_tokens", [1, 64, 1024])
@pytest.mark.parametrize("num_context", [1, 10, 26])
def test_likelihoods_of_texts_equal_transformers(
    oracle: Any, shape: dict[str, int], max_step_tokens: int, num_context: int
) -> None:
    pair = oracle.pair("GPTJForCausalLM", **shape)
    rows = [row for row in prompts(oracle) if len(row) > num_context]
    engine = Engine(pair.ours, EngineConfig(max_step_tokens=max_step_tokens, num_blocks=1))
    results = engine.run([ScoreRequest(key="a", prompt_token_ids=row, first_token=num_context) for row in rows])
    for row, result in zip(rows, results, strict=True):
        assert isinstance(result, Scored) and result.num_prompt_tokens == len(row)
        assert result.token_logprobs == pytest.approx(logprobs(pair.theirs, row)[num_context - 1 :], abs=1e-5)


def test_the_mean_of_a_texts_likelihoods_is_transformers_loss(oracle: Any) -> None:
    pair = oracle.pair("GPTJForCausalLM")
    for row in prompts(oracle)[:3]:
        (result,) = Engine(pair.ours).run([ScoreRequest(key="a", prompt_token_ids=row)])
        assert isinstance(result, Scored)
        with torch.no_grad():
            loss = pair.theirs(torch.tensor([row]), labels=torch.tensor([row])).loss
        assert -sum(result.token_logprobs) / len(result.token_logprobs) == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize("layer", [None, 0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("normalize", [False, True])
def test_embeddings_are_pooled_hidden_states_of_transformers(
    oracle: Any, layer: int | None, pooling: Any, normalize: bool
) -> None:
    pair = oracle.pair("GPTJForCausalLM")
    rows = prompts(oracle)
    requests = [
        EmbedRequest(key="a", prompt_token_ids=row, pooling=pooling, layer=layer, normalize=normalize) for row in rows
    ]
    results = Engine(pair.ours, EngineConfig(max_step_tokens=64, num_blocks=1)).run(requests)
    for row, result in zip(rows, results, strict=True):
        with torch.no_grad():
            states = pair.theirs(torch.tensor([row]), output_hidden_states=True).hidden_states
        hidden = states[-1 if layer is None else layer][0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
        expected = torch.nn.functional.normalize(expected, dim=0) if normalize else expected
        assert isinstance(result, Embedded)
        assert list(result.vector) == pytest.approx(expected.tolist(), abs=1e-5)
