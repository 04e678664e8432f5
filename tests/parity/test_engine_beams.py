"""Beam search in the engine against transformers, float32: alone, in company, cut up, preempted."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from beam_oracle import VOCAB_SIZE, assert_same, random_sampling, search_theirs

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.results import AnyResult

LONGEST_PROMPT = 14


def make_prompts(rng: random.Random, count: int) -> list[list[int]]:
    return [[rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randint(1, LONGEST_PROMPT))] for _ in range(count)]


def run_checked(engine: Engine, requests: list[Request]) -> list[AnyResult]:
    """Run requests to the end, the books looked at after every step."""
    results: dict[int, AnyResult] = {}
    for index, request in enumerate(requests):
        engine.add(request, lambda result, index=index: results.__setitem__(index, result))  # type: ignore[misc]
    while engine.has_unfinished:
        engine.step()
        engine.scheduler.check()
    assert engine.scheduler.pool.num_used == 0
    return [results[index] for index in range(len(requests))]


def run_beams(engine: Engine, requests: list[Request]) -> list[Generated]:
    results = run_checked(engine, requests)
    assert all(isinstance(result, Generated) for result in results), results
    return [result for result in results if isinstance(result, Generated)]


def make_pair(oracle: Any, seed: int) -> Any:
    pair = oracle.pair("GPTJForCausalLM", n_layer=1 + seed % 2, eos_token_id=None, bos_token_id=None)
    with torch.no_grad():  # from hardly any preference to clear ones
        for model in (pair.ours, pair.theirs):
            model.lm_head.weight *= (0.3, 0.7, 1.5)[seed % 3]
    return pair


def make_searches(
    pair: Any, rng: random.Random, count: int
) -> tuple[list[Request], list[list[tuple[list[int], float]]]]:
    """Draw prompts and settings, with end tokens that are hit; return the requests and what transformers finds."""
    requests, expected = [], []
    for prompt in make_prompts(rng, count):
        free = SamplingParams(num_beams=4, max_new_tokens=5, ignore_eos=True, num_return_sequences=4)
        likely = {token for one in search_theirs(pair.theirs, [prompt], free)[0] for token in one[0]}
        sampling = random_sampling(rng, sorted(likely))
        requests.append(Request(key="a", prompt_token_ids=prompt, sampling=sampling))
        expected += search_theirs(pair.theirs, [prompt], sampling)
    return requests, expected


def make_others(rng: random.Random) -> list[Request]:
    """Draw greedy and sampled requests."""
    return [
        Request(
            key="b",
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_new_tokens=12, temperature=index % 2, seed=index, ignore_eos=True),
        )
        for index, prompt in enumerate(make_prompts(rng, 8))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_beams_equal_transformers_alone_in_company_and_preempted(oracle: Any, seed: int) -> None:
    rng = random.Random(seed)
    pair = make_pair(oracle, seed)
    searches, expected = make_searches(pair, rng, 10)
    others = make_others(rng)

    roomy = Engine(pair.ours, EngineConfig(num_blocks=400, block_size_tokens=4))
    for request, theirs in zip(searches, expected, strict=True):
        assert_same(run_beams(roomy, [request])[0], theirs)
    alone = [run_beams(roomy, [request])[0] for request in others]

    mixed = [request for both in zip(searches, [*others, *others[:2]], strict=True) for request in both]
    for config in (
        EngineConfig(num_blocks=400, block_size_tokens=16, max_running=60),
        EngineConfig(num_blocks=45, block_size_tokens=4, max_step_tokens=24),
        EngineConfig(num_blocks=150, block_size_tokens=1, max_step_tokens=9, prefix_caching=False),
    ):
        found = run_beams(Engine(pair.ours, config), mixed)
        for result, theirs in zip(found[::2], expected, strict=True):
            assert_same(result, theirs)
        assert [result.token_ids for result in found[1::2]] == [one.token_ids for one in [*alone, *alone[:2]]]


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_a_group_that_is_preempted_finds_the_same(oracle: Any, prefix_caching: bool) -> None:
    """Requests that may grow beyond what was promised to them take the blocks of a younger beam search."""
    pair = make_pair(oracle, 2)
    rng = random.Random(1)
    sampling = SamplingParams(num_beams=4, num_return_sequences=4, max_new_tokens=14, ignore_eos=True)
    searches = [Request(key="a", prompt_token_ids=prompt, sampling=sampling) for prompt in make_prompts(rng, 6)]
    growing = SamplingParams(max_new_tokens=30, stop_token_ids=(VOCAB_SIZE,), ignore_eos=True)
    others = [Request(key="b", prompt_token_ids=prompt, sampling=growing) for prompt in make_prompts(rng, 6)]
    engine = Engine(
        pair.ours, EngineConfig(num_blocks=48, block_size_tokens=2, prefix_caching=prefix_caching, max_step_tokens=20)
    )
    found = run_beams(engine, [request for both in zip(others, searches, strict=True) for request in both])
    assert engine.scheduler.num_preemptions > 0
    for request, result in zip(searches, found[1::2], strict=True):
        assert_same(result, search_theirs(pair.theirs, [list(request.prompt_token_ids)], sampling)[0])


def test_stop_conditions_let_the_number_of_beams_shrink_and_grow(oracle: Any) -> None:
    """And no more run at once than may: the place of a beam that has gone is kept."""
    pair = make_pair(oracle, 1)
    sampling = SamplingParams(num_beams=4, num_return_sequences=4, max_new_tokens=14, early_stopping="never")
    requests, expected = [], []
    for prompt in make_prompts(random.Random(0), 12):

        def stop(token_ids: Any, divisor: int = 2 + len(prompt) % 3) -> bool:
            return len(token_ids) % 3 == 2 and token_ids[-1] % divisor != 0

        requests.append(Request(key="a", prompt_token_ids=prompt, sampling=sampling, stop=stop))
        criteria = [StopsLike(stop, len(prompt))]
        expected += search_theirs(pair.theirs, [prompt], sampling, stopping_criteria=criteria)
    engine = Engine(pair.ours, EngineConfig(num_blocks=150, block_size_tokens=2, max_running=8))
    found_beside_others = run_beams(engine, [*requests, *make_others(random.Random(0))])[: len(requests)]
    for ours, theirs in zip(found_beside_others, expected, strict=True):
        found = [ours, *ours.alternatives]
        assert [list(one.token_ids) for one in found] == [
            tokens[: len(one.token_ids)] for one, (tokens, _) in zip(found, theirs, strict=True)
        ]


class StopsLike:
    """A stop condition of ours as a stopping criterion of theirs."""

    def __init__(self, stop: Any, num_prompt_tokens: int) -> None:
        self.stop = stop
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.tensor([self.stop(row[self.num_prompt_tokens :]) for row in input_ids.tolist()])


def test_the_logprobs_are_those_of_the_model(oracle: Any) -> None:
    pair = make_pair(oracle, 2)
    sampling = SamplingParams(
        num_beams=3, num_return_sequences=2, max_new_tokens=9, ignore_eos=True, logprobs=True, repetition_penalty=1.3
    )
    for prompt in make_prompts(random.Random(3), 4):
        (best,) = run_beams(Engine(pair.ours), [Request(key="a", prompt_token_ids=prompt, sampling=sampling)])
        for one in (best, *best.alternatives):
            with torch.no_grad():
                logits = pair.theirs(torch.tensor([prompt + list(one.token_ids)])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(one.token_ids)[:, None])[:, 0]
            assert one.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_mlperf_setting_equals_transformers(oracle: Any) -> None:
    end = 7
    pair = oracle.pair("GPTJForCausalLM", n_positions=160, eos_token_id=end, bos_token_id=None)
    prompts = make_prompts(random.Random(4), 5)
    requests = [Request(key="a", prompt_token_ids=prompt, sampling=SamplingParams.mlperf_gptj()) for prompt in prompts]
    with_end = replace(SamplingParams.mlperf_gptj(), stop_token_ids=(end,))
    expected = [search_theirs(pair.theirs, [prompt], with_end)[0] for prompt in prompts]
    for result, theirs in zip(run_beams(Engine(pair.ours), requests), expected, strict=True):
        assert_same(result, theirs)
        assert len(result.token_ids) >= 30
