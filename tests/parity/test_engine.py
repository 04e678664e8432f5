"""The engine's greedy tokens against transformers' `generate`, float32: alone, in company, cut up, preempted."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig

HEAD_64_PARTIAL = {"n_embd": 128, "n_head": 2, "rotary_dim": 16}
HEAD_64_FULL = {"n_embd": 128, "n_head": 2, "rotary_dim": 64}
HEAD_256_PARTIAL = {"n_embd": 512, "n_head": 2, "rotary_dim": 64}
HEAD_256_FULL = {"n_embd": 512, "n_head": 2, "rotary_dim": 256}
SHAPES = (HEAD_64_PARTIAL, HEAD_64_FULL, HEAD_256_PARTIAL, HEAD_256_FULL)
VOCAB_SIZE, NEW_TOKENS = 503, 24
LENGTHS = (1, 2, 7, 8, 9, 31, 40, 3, 17, 64, 5, 5)


def make_pair(oracle: Any, **shape: Any) -> Any:
    return oracle.pair("GPTJForCausalLM", vocab_size=VOCAB_SIZE, n_positions=128, **shape)


def make_prompts(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def generate_theirs(theirs: Any, prompt: list[int], **settings: Any) -> list[int]:
    """Return what transformers generates for one prompt by itself."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
    output: list[int] = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
    return output


def make_request(prompt: list[int], **sampling: Any) -> Request:
    params = SamplingParams(**{"max_new_tokens": NEW_TOKENS, "ignore_eos": True, **sampling})
    return Request(key="a", prompt_token_ids=prompt, sampling=params)


def generate_ours(engine: Engine, requests: list[Request]) -> list[list[int]]:
    results = engine.run(requests)
    engine.scheduler.check()
    assert engine.scheduler.pool.num_used == 0
    assert all(isinstance(result, Generated) for result in results), results
    return [list(result.token_ids) for result in results if isinstance(result, Generated)]


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_tokens_equal_transformers_alone_in_company_and_preempted(oracle: Any, shape: dict[str, int]) -> None:
    pair = make_pair(oracle, **shape)
    prompts = make_prompts()
    requests = [make_request(prompt) for prompt in prompts]
    expected = [generate_theirs(pair.theirs, prompt) for prompt in prompts]
    assert len({token for row in expected for token in row}) > 50, "tokens that hardly vary prove little"

    roomy = Engine(pair.ours, EngineConfig(num_blocks=100))
    assert [generate_ours(roomy, [request])[0] for request in requests] == expected
    assert generate_ours(roomy, requests) == expected
    assert roomy.scheduler.num_preemptions == 0

    tight = Engine(pair.ours, EngineConfig(num_blocks=26, block_size_tokens=4, max_step_tokens=48))
    # A stop condition that never holds: the engine cannot know, and promises less memory than a request will take.
    assert generate_ours(tight, [replace(request, stop=lambda generated: False) for request in requests]) == expected
    assert tight.scheduler.num_preemptions > 0
    assert generate_ours(tight, requests) == expected


@pytest.mark.parametrize("max_step_tokens", [1, 5, 16])
def test_prompts_cut_into_chunks_give_the_same(oracle: Any, max_step_tokens: int) -> None:
    pair = make_pair(oracle)
    prompts = make_prompts((1, 30, 12, 5, 5))
    engine = Engine(pair.ours, EngineConfig(max_step_tokens=max_step_tokens, block_size_tokens=8, num_blocks=20))
    expected = [generate_theirs(pair.theirs, prompt) for prompt in prompts]
    assert generate_ours(engine, [make_request(prompt) for prompt in prompts]) == expected


@pytest.mark.parametrize("block_size_tokens", [1, 3, 128])
def test_any_block_size_gives_the_same(oracle: Any, block_size_tokens: int) -> None:
    pair = make_pair(oracle)
    prompts = make_prompts((1, 30, 12, 5))
    config = EngineConfig(block_size_tokens=block_size_tokens, num_blocks=-(-70 // block_size_tokens))
    expected = [generate_theirs(pair.theirs, prompt) for prompt in prompts]
    assert generate_ours(Engine(pair.ours, config), [make_request(prompt) for prompt in prompts]) == expected


def test_a_sequence_may_fill_every_position_and_the_whole_cache(oracle: Any) -> None:
    pair = make_pair(oracle)
    (prompt,) = make_prompts((100,))
    engine = Engine(pair.ours, EngineConfig(block_size_tokens=1, num_blocks=127))
    expected = generate_theirs(pair.theirs, prompt, max_new_tokens=28)
    assert generate_ours(engine, [make_request(prompt, max_new_tokens=28)]) == [expected]


def test_end_of_text_stops_where_transformers_stops(oracle: Any) -> None:
    pair = make_pair(oracle)
    prompts = make_prompts()
    ends = [generate_theirs(pair.theirs, prompt)[6] for prompt in prompts[:3]]
    pair.ours.config.eos_token_id = ends
    ours = generate_ours(Engine(pair.ours), [make_request(prompt, ignore_eos=False) for prompt in prompts])
    assert ours == [generate_theirs(pair.theirs, prompt, eos_token_id=ends) for prompt in prompts]
    assert min(map(len, ours)) < NEW_TOKENS


def test_a_minimum_of_new_tokens_is_kept_as_transformers_keeps_it(oracle: Any) -> None:
    pair = make_pair(oracle)
    prompts = make_prompts()
    ends = sorted({generate_theirs(pair.theirs, prompt)[place] for prompt in prompts for place in (2, 9)})
    pair.ours.config.eos_token_id = ends
    requests = [make_request(prompt, ignore_eos=False, min_new_tokens=7) for prompt in prompts]
    expected = [generate_theirs(pair.theirs, prompt, eos_token_id=ends, min_new_tokens=7) for prompt in prompts]
    assert generate_ours(Engine(pair.ours), requests) == expected
    assert 7 <= min(map(len, expected)) < NEW_TOKENS


@pytest.mark.parametrize("penalty", [1.2, 2.5, 0.8])
def test_repetition_penalty_equals_transformers(oracle: Any, penalty: float) -> None:
    pair = make_pair(oracle)
    prompts = make_prompts()
    requests = [make_request(prompt, repetition_penalty=penalty) for prompt in prompts]
    expected = [generate_theirs(pair.theirs, prompt, repetition_penalty=penalty) for prompt in prompts]
    assert generate_ours(Engine(pair.ours, EngineConfig(num_blocks=30, block_size_tokens=4)), requests) == expected


def test_ragged_prompts_give_what_transformers_gives_for_them_left_padded(oracle: Any) -> None:
    pair = make_pair(oracle)
    prompts = make_prompts((3, 11, 7))
    ids = torch.tensor([[0] * (11 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (11 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        padded = pair.theirs.generate(
            ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    requests = [make_request(prompt, max_new_tokens=8) for prompt in prompts]
    assert generate_ours(Engine(pair.ours), requests) == padded[:, 11:].tolist()


def test_a_checkpoint_that_transformers_wrote_is_loaded_by_path(oracle: Any) -> None:
    pair = make_pair(oracle)
    assert isinstance(pair.theirs, transformers.GPTJForCausalLM)
    (prompt,) = make_prompts((9,))
    engine = Engine.from_pretrained(pair.folder, dtype="float32", config=EngineConfig(num_blocks=4))
    assert generate_ours(engine, [make_request(prompt)]) == [generate_theirs(pair.theirs, prompt)]


def test_bfloat16_stays_close_to_transformers(oracle: Any) -> None:
    """Not the same tokens, but about as likely ones: each choice is at most a rounding below transformers' best."""
    pair = make_pair(oracle)
    engine = Engine.from_pretrained(pair.folder, dtype="bfloat16", config=EngineConfig(num_blocks=40))
    prompts = make_prompts()
    for prompt, tokens in zip(prompts, generate_ours(engine, [make_request(p) for p in prompts]), strict=True):
        with torch.no_grad():
            logits = pair.theirs(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        shortfall = logits.max(-1).values - logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        assert float(shortfall.max()) < 0.05 * float(logits.std())
