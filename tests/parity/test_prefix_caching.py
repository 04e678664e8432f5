"""Prefix caching on and off give the same greedy tokens, float32, and nothing is computed twice."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig

VOCAB_SIZE, NEW_TOKENS = 503, 8


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def make_requests(prompts: list[list[int]], **sampling: Any) -> list[Request]:
    params = SamplingParams(**{"max_new_tokens": NEW_TOKENS, "ignore_eos": True, **sampling})
    return [Request(key="a", prompt_token_ids=prompt, sampling=params) for prompt in prompts]


def run(engine: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    results = engine.run(requests)
    engine.scheduler.check()
    assert engine.scheduler.pool.num_used == 0
    assert all(isinstance(result, Generated) for result in results), results
    return [result.token_ids for result in results if isinstance(result, Generated)]


def shared_prompts() -> list[list[int]]:
    """Return prompts of several families that share 45 and 13 tokens, some with parts of them only."""
    long, short = random_ids(45, 1), random_ids(13, 2)
    prompts = [[*(short if index % 3 == 0 else long), *random_ids(1 + index % 7, 10 + index)] for index in range(24)]
    return [*prompts, long[:20], long[:33], [*long[:30], *random_ids(5, 3)], short]


@pytest.fixture
def model(oracle: Any) -> Any:
    return oracle.pair("GPTJForCausalLM", vocab_size=VOCAB_SIZE, n_positions=128).ours


@pytest.fixture
def expected(model: Any) -> list[tuple[int, ...]]:
    return run(Engine(model, EngineConfig(prefix_caching=False)), make_requests(shared_prompts()))


@pytest.mark.parametrize("max_step_tokens", [1024, 40])
@pytest.mark.parametrize("block_size_tokens", [1, 4, 16])
def test_shared_prefixes_give_the_same_and_are_computed_once(
    model: Any, expected: list[tuple[int, ...]], block_size_tokens: int, max_step_tokens: int
) -> None:
    config = EngineConfig(
        max_step_tokens=max_step_tokens, block_size_tokens=block_size_tokens, num_blocks=2000 // block_size_tokens
    )
    engine = Engine(model, config)
    prompts = shared_prompts()
    assert run(engine, make_requests(prompts)) == expected
    scheduler = engine.scheduler
    everything = sum(len(prompt) + NEW_TOKENS - 1 for prompt in prompts)
    assert scheduler.num_fed_tokens + scheduler.num_cached_prompt_tokens == everything
    prefixes = {tuple(prompt[:stop]) for prompt in prompts for stop in range(1, len(prompt) + 1)}
    # What is not shared: each prompt's last token, and fewer than half a block where two are computed at once.
    assert scheduler.num_fed_tokens - len(prompts) * (NEW_TOKENS - 1) <= len(prefixes) + len(prompts) * (
        1 + block_size_tokens // 2
    )
    again = scheduler.num_fed_tokens
    assert run(engine, make_requests(prompts)) == expected
    assert scheduler.num_fed_tokens - again == len(prompts) * NEW_TOKENS, "a prompt's last token, and what is generated"


@pytest.mark.parametrize("num_blocks", [15, 30])
def test_a_cache_too_small_for_all_gives_the_same_through_evictions_and_preemptions(
    model: Any, expected: list[tuple[int, ...]], num_blocks: int
) -> None:
    engine = Engine(model, EngineConfig(num_blocks=num_blocks, block_size_tokens=4, max_step_tokens=48))
    requests = [replace(request, stop=lambda generated: False) for request in make_requests(shared_prompts())]
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(0)).tolist()
    assert run(engine, [requests[index] for index in order]) == [expected[index] for index in order]
    assert engine.scheduler.num_preemptions > 0
    assert engine.scheduler.num_cached_prompt_tokens > 0


def test_samples_of_one_prompt_share_all_but_its_last_token(model: Any) -> None:
    prompt = random_ids(50, 4)
    requests = [
        Request(
            key="a",
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_new_tokens=NEW_TOKENS, temperature=1.0, ignore_eos=True, seed=seed),
        )
        for seed in range(6)
    ]
    engine = Engine(model, EngineConfig(num_blocks=60, block_size_tokens=16))
    samples = run(engine, requests)
    assert samples == run(Engine(model, EngineConfig(prefix_caching=False)), requests)
    assert len(set(samples)) == 6
    assert engine.scheduler.num_fed_tokens == 50 + 5 + 6 * (NEW_TOKENS - 1)
