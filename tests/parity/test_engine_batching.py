"""An engine that has taken its model's weights: a request's tokens and log-probabilities do not depend on its company.

In float32 and bfloat16 they are the same bit for bit, alone or with others, cut up, preempted, found in the cache.
"""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.engine.cpu_attention import CpuPagedAttention
from gptj_batch.engine.linear import SharedWeights
from gptj_batch.engine.prepare import _linears, why_no_cpu_kernels
from gptj_batch.model import GPTJConfig, GPTJForCausalLM

CPU = torch.device("cpu")
REASON = why_no_cpu_kernels(CPU, torch.float32, 16)
needs_kernels = pytest.mark.skipif(REASON is not None, reason=f"no C++ kernels: {REASON}")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
VOCAB_SIZE, NEW_TOKENS = 503, 24

Found = list[tuple[tuple[int, ...], tuple[float, ...] | None]]
"""Tokens and log-probabilities of every request."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    # Models this small lose more to waiting threads than they gain.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def make_engine(dtype: torch.dtype, activation: str = "gelu_new", **settings: Any) -> Engine:
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=VOCAB_SIZE,
        n_positions=160,
        n_embd=96,
        n_layer=2,
        n_head=2,
        rotary_dim=16,
        activation_function=activation,
        initializer_range=0.25,
    )
    engine = Engine(GPTJForCausalLM(config).to(dtype).eval(), EngineConfig(**settings), take_weights=True)
    assert engine.runner is not None
    if engine.bounds.block_size_tokens % 16 == 0 and settings.get("kernels") != "torch":
        assert isinstance(engine.runner._attention, CpuPagedAttention)
    return engine


def make_requests() -> list[Request]:
    """Return prompts of all lengths, some of which begin alike, with greedy choices and drawn ones."""
    dice = random.Random(1)
    common = [dice.randrange(VOCAB_SIZE) for _ in range(50)]
    requests = []
    for index in range(24):
        own = [dice.randrange(VOCAB_SIZE) for _ in range(dice.randint(1, 90) if index % 3 else 1 + index)]
        prompt = [*common[: 10 + 2 * index], *own] if index % 4 == 0 else own
        sampling = SamplingParams(
            max_new_tokens=NEW_TOKENS,
            ignore_eos=True,
            logprobs=True,
            temperature=0.8 if index % 5 == 0 else 0.0,
            seed=index,
        )
        requests.append(Request(key=str(index), prompt_token_ids=prompt, sampling=sampling))
    return requests


def run(engine: Engine, requests: list[Request]) -> Found:
    results = engine.run(requests)
    engine.scheduler.check()
    assert all(isinstance(result, Generated) for result in results), results
    return [(result.token_ids, result.logprobs) for result in results if isinstance(result, Generated)]


def run_one_by_one(engine: Engine, requests: list[Request]) -> Found:
    return [run(engine, [request])[0] for request in requests]


@pytest.fixture(scope="module")
def alone() -> dict[torch.dtype, Found]:
    """Return what each request gives in an engine to itself, where nothing can be found in the cache."""
    return {
        dtype: run_one_by_one(make_engine(dtype, prefix_caching=False), make_requests())
        for dtype in (torch.float32, torch.bfloat16)
    }


def skip_where_not_packed(dtype: torch.dtype, activation: str = "gelu_new") -> None:
    if isinstance(_linears(CPU, dtype, activation), SharedWeights):
        pytest.skip(f"{dtype} is multiplied by torch's own functions on this machine")


def test_the_requests_vary_enough_to_prove_something(alone: dict[torch.dtype, Found]) -> None:
    for found in alone.values():
        assert len({token for token_ids, _ in found for token in token_ids}) > 100


@needs_kernels
@DTYPES
@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_running": 3},
        {"max_running": 1},
        {"max_step_tokens": 1, "max_running": 8},
        {"max_step_tokens": 7},
        {"max_step_tokens": 33, "num_blocks": 20},
        {"num_blocks": 11},
        {"block_size_tokens": 32},
        {"block_size_tokens": 48, "max_step_tokens": 20},
    ],
)
def test_company_changes_no_bit(
    alone: dict[torch.dtype, Found], settings: dict[str, int], prefix_caching: bool, dtype: torch.dtype
) -> None:
    skip_where_not_packed(dtype)
    engine = make_engine(dtype, prefix_caching=prefix_caching, **settings)
    assert run(engine, make_requests()) == alone[dtype]
    if prefix_caching and settings == {}:
        assert run(engine, make_requests()[::-1])[::-1] == alone[dtype], "with much of it in the cache"
        assert engine.scheduler.num_cached_prompt_tokens > 100


@needs_kernels
@DTYPES
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_preemption_changes_no_bit(alone: dict[torch.dtype, Found], prefix_caching: bool, dtype: torch.dtype) -> None:
    skip_where_not_packed(dtype)
    engine = make_engine(dtype, prefix_caching=prefix_caching, num_blocks=14, max_step_tokens=40)
    # A stop condition that never holds: the engine cannot know, and promises less memory than a request will take.
    requests = [replace(request, stop=lambda generated: False) for request in make_requests()]
    assert run(engine, requests) == alone[dtype]
    assert engine.scheduler.num_preemptions > 0


@needs_kernels
@DTYPES
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "tanh"])
def test_no_activation_makes_a_difference(activation: str, dtype: torch.dtype) -> None:
    skip_where_not_packed(dtype, activation)
    requests = make_requests()[:8]
    expected = run_one_by_one(make_engine(dtype, activation, prefix_caching=False), requests)
    assert run(make_engine(dtype, activation, max_step_tokens=50), requests) == expected


@needs_kernels
@DTYPES
def test_more_threads_change_no_bit(alone: dict[torch.dtype, Found], dtype: torch.dtype) -> None:
    skip_where_not_packed(dtype)
    torch.set_num_threads(3)
    try:
        assert run(make_engine(dtype), make_requests()[:6]) == alone[dtype][:6]
    finally:
        torch.set_num_threads(1)


def test_kernels_and_plain_torch_choose_the_same_tokens_in_float32(alone: dict[torch.dtype, Found]) -> None:
    for settings in ({}, {"block_size_tokens": 4, "max_step_tokens": 30}):
        found = run(make_engine(torch.float32, kernels="torch", **settings), make_requests())
        assert [token_ids for token_ids, _ in found] == [token_ids for token_ids, _ in alone[torch.float32]]
        for (_, ours), (_, theirs) in zip(found, alone[torch.float32], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)


@torch.no_grad()
def generate_theirs(theirs: Any, prompt: list[int]) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    output = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return tuple(output[0, len(prompt) :].tolist())


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize(("n_embd", "rotary_dim"), [(128, 64), (128, 32), (256, 64), (512, 64), (512, 256), (48, 8)])
def test_an_engine_from_a_checkpoint_chooses_transformers_tokens(
    oracle: Any, n_embd: int, rotary_dim: int, kernels: str
) -> None:
    pair = oracle.pair(
        "GPTJForCausalLM", vocab_size=VOCAB_SIZE, n_positions=128, n_embd=n_embd, n_head=2, rotary_dim=rotary_dim
    )
    lengths = (1, 2, 7, 31, 40, 17, 64)
    dice = random.Random(2)
    prompts = [[dice.randrange(VOCAB_SIZE) for _ in range(length)] for length in lengths]
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    requests = [Request(key="a", prompt_token_ids=prompt, sampling=sampling) for prompt in prompts]
    config = EngineConfig(max_step_tokens=50, num_blocks=40, kernels=kernels)
    engine = Engine.from_pretrained(pair.folder, dtype="float32", config=config)
    expected = [generate_theirs(pair.theirs, prompt) for prompt in prompts]
    assert [token_ids for token_ids, _ in run(engine, requests)] == expected
    assert [token_ids for token_ids, _ in run_one_by_one(engine, requests)] == expected
