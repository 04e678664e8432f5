"""Sampled tokens: the same in any company, and distributed as transformers' logits processors say."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.engine.sampling import choose, filter_scores, penalise_repetition
from gptj_batch.engine.sequence import Sequence

WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 10},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.1},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.4},
)


def their_scores(logits: torch.Tensor, seen: list[int], sampling: SamplingParams) -> torch.Tensor:
    """Return what transformers' processors make of one row of logits."""
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(MinPLogitsWarper(sampling.min_p))
    scores: torch.Tensor = processors(torch.tensor([seen]), logits[None].clone())
    return scores[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_the_filters_are_those_of_transformers(way: dict[str, Any], spread: float) -> None:
    logits = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0)) * spread
    sampling = SamplingParams(**way)
    seen = [3, 5, 5, 900]
    sequences = [Sequence(0, Request(key="a", prompt_token_ids=seen, sampling=sampling)) for _ in range(20)]
    ours = logits.clone()
    penalise_repetition(ours, sequences)
    ours = filter_scores(ours, [sampling] * 20)
    theirs = torch.stack([their_scores(row, seen, sampling) for row in logits])
    differing = (ours - theirs).nan_to_num(0.0).abs() > 1e-5  # both minus infinity: NaN
    assert int(differing.sum()) <= 1  # of 20,000: a rounding at the edge of a nucleus


@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_drawn_as_often_as_they_are_likely(way: dict[str, Any]) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 1.5
    num_draws = 20_000
    sequences = [
        Sequence(0, Request(key="a", prompt_token_ids=[2, 7], sampling=SamplingParams(seed=seed, **way)))
        for seed in range(num_draws)
    ]
    choices = choose(logits.expand(num_draws, -1), sequences, ())
    counts = torch.bincount(torch.tensor([choice.token_id for choice in choices]), minlength=12).double()
    expected = their_scores(logits, [2, 7], SamplingParams(**way)).softmax(-1).double() * num_draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    # Chi-squared with at most 11 degrees of freedom: 31.3 is passed once in a thousand.
    assert float(((counts - expected)[possible] ** 2 / expected[possible]).sum()) < 31.3


def run(engine: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in engine.run(requests) if isinstance(result, Generated)]


def test_sampled_tokens_do_not_depend_on_company_preemption_or_chunks(oracle: Any) -> None:
    pair = oracle.pair("GPTJForCausalLM", vocab_size=503, n_positions=128)
    generator = torch.Generator().manual_seed(1)
    requests = [
        Request(
            key="a",
            prompt_token_ids=torch.randint(0, 503, (1 + 5 * index,), generator=generator).tolist(),
            sampling=SamplingParams(max_new_tokens=20, ignore_eos=True, seed=index, **WAYS[index % len(WAYS)]),
        )
        for index in range(12)
    ]
    roomy = Engine(pair.ours, EngineConfig(num_blocks=60))
    alone = [run(roomy, [request])[0] for request in requests]
    assert run(roomy, requests) == alone
    assert run(roomy, requests[::-1]) == alone[::-1]
    tight = Engine(pair.ours, EngineConfig(num_blocks=20, block_size_tokens=4, max_step_tokens=16))
    # A stop condition that never holds: the engine cannot know, and promises less memory than a request will take.
    assert run(tight, [replace(request, stop=lambda generated: False) for request in requests]) == alone
    assert tight.scheduler.num_preemptions > 0
    assert len(set(alone)) == 12


def test_other_seeds_give_other_tokens(oracle: Any) -> None:
    pair = oracle.pair("GPTJForCausalLM")
    requests = [
        Request(
            key="a",
            prompt_token_ids=[5, 6],
            sampling=SamplingParams(max_new_tokens=10, temperature=1.0, ignore_eos=True, seed=seed),
        )
        for seed in (*range(8), 0)
    ]
    tokens = run(Engine(pair.ours), requests)
    assert len(set(tokens)) == 8
    assert tokens[0] == tokens[8]
