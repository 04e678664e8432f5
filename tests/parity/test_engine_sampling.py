"""Sampled tokens: the same in any company, and distributed as transformers' logits processors say."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.demo import demo_folder
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.engine.sampling import choose, filter_scores, penalise_repetition, suppress_stop_tokens
from gptj_batch.engine.sequence import Sequence
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.tasks.generate import StopStrings

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


class Listed:
    """Allows what a function of the tokens so far says, as transformers' prefix_allowed_tokens_fn does."""

    def __init__(self, after: Any, seen: tuple[int, ...] = ()) -> None:
        self.after = after
        self.seen = seen
        self.may_end = self.is_complete = False

    def start(self) -> "Listed":
        return Listed(self.after)

    def allowed(self) -> tuple[int, ...]:
        return tuple(self.after(len(self.seen)))

    def accept(self, token_id: int) -> None:
        self.seen += (token_id,)


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.3}])
def test_constrained_greedy_tokens_equal_transformers(oracle: Any, settings: dict[str, float]) -> None:
    pair = oracle.pair("GPTJForCausalLM", n_layer=3, n_positions=96, eos_token_id=None, bos_token_id=None)
    prompt = [5, 6, 7, 8]

    def after(num_generated: int) -> list[int]:
        return list(range(1 + num_generated % 5, pair.ours.config.vocab_size, 7))

    theirs = pair.theirs.generate(
        torch.tensor([prompt]),
        max_new_tokens=20,
        do_sample=False,
        prefix_allowed_tokens_fn=lambda _, ids: after(len(ids) - len(prompt)),
        **settings,
    )
    sampling = SamplingParams(max_new_tokens=20, **settings)  # type: ignore[arg-type]
    request = Request(key="a", prompt_token_ids=prompt, sampling=sampling, constraint=Listed(after))
    assert run(Engine(pair.ours), [request]) == [tuple(theirs[0, 4:].tolist())]


@pytest.mark.parametrize("num_generated", [0, 1, 2, 3])
def test_tokens_that_end_are_impossible_as_long_as_in_transformers(num_generated: int) -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    sampling = SamplingParams(min_new_tokens=2, stop_token_ids=(7,))
    sequence = Sequence(0, Request(key="a", prompt_token_ids=[3, 4], sampling=sampling))
    for token in range(num_generated):
        sequence.append(token)
    ours = logits.clone()
    suppress_stop_tokens(ours, [sequence], (1,))
    theirs = MinNewTokensLengthLogitsProcessor(2, 2, [1, 7], device="cpu")(torch.tensor([sequence.token_ids]), logits)
    assert torch.equal(ours, theirs)


def test_stop_strings_stop_where_transformers_stops() -> None:
    folder = demo_folder("causal-lm")
    tokenizer = Tokenizer.from_folder(folder)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    stops = ["ld ne", "the", "\n\n", "é😀", "s a"]
    ours, theirs = StopStrings(stops, tokenizer), StopStringCriteria(fast, stops)
    generator = torch.Generator().manual_seed(0)
    text = tokenizer.encode_batch(["in the world news", "sports and business", "a\n\nb é😀 world\n"])
    num_stops = 0
    for number in range(300):
        kept = text[number % 3][: 1 + number % 7]
        drawn = torch.randint(0, tokenizer.vocab_size, (number % 4,), generator=generator).tolist()
        token_ids = [*(token for token in drawn if token not in tokenizer.added_token_ids), *kept]
        found = ours(token_ids)
        assert found == bool(theirs(torch.tensor([token_ids]), torch.zeros(1, 1))), token_ids
        num_stops += found
    assert 30 < num_stops < 270
