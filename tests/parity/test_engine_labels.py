"""Label likelihoods from one packed pass against transformers' log-softmax, each label fed by itself."""

from typing import Any

import pytest
import torch

from gptj_batch import Labelled, LabelRequest
from gptj_batch.engine import Engine, EngineConfig

LABELS = ((5, 6, 7), (5, 6, 8, 9, 10), (4,), (5,), (11, 5, 6, 7), (90,))
SHAPES = (
    {"n_embd": 128, "n_head": 2, "rotary_dim": 16},
    {"n_embd": 128, "n_head": 2, "rotary_dim": 64},
    {"n_embd": 512, "n_head": 2, "rotary_dim": 64},
)


@torch.no_grad()
def score_theirs(theirs: Any, prompt: tuple[int, ...], label: tuple[int, ...]) -> float:
    logprobs = theirs(torch.tensor([[*prompt, *label]])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + place, token]) for place, token in enumerate(label))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("max_step_tokens", [1, 64, 1024])
def test_likelihoods_equal_transformers_whoever_shares_the_pass(
    oracle: Any, shape: dict[str, int], max_step_tokens: int
) -> None:
    pair = oracle.pair("GPTJForCausalLM", **shape)
    prompts = [tuple(oracle.tokens(1, n)["input_ids"][0].tolist()) for n in (1, 2, 9, 30, 43, 17, 5)]
    requests = [
        LabelRequest(key="a", prompt_token_ids=prompt, label_token_ids=LABELS[: 1 + index])
        for index, prompt in enumerate(prompts)
    ]
    engine = Engine(pair.ours, EngineConfig(max_step_tokens=max_step_tokens, num_blocks=1))
    for request, result in zip(requests, engine.score_labels(requests), strict=True):
        assert isinstance(result, Labelled)
        prompt = tuple(request.prompt_token_ids)
        expected = [score_theirs(pair.theirs, prompt, label) for label in request.label_token_ids]
        assert result.label_logprobs == pytest.approx(expected, abs=1e-5)
