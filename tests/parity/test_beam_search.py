"""The beam search alone against transformers, float32: a whole forward pass for each step, no engine and no cache."""

import random
from typing import Any

import pytest
import torch
from beam_oracle import VOCAB_SIZE, assert_same, random_sampling, search_theirs
from transformers import StoppingCriteria

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.engine.beam_offers import offer
from gptj_batch.engine.beam_search import BeamSearch
from gptj_batch.engine.sequence import Sequence


@torch.no_grad()
def search(model: Any, request: Request) -> Generated:
    """Run a request's beams through the whole model in every step."""
    beams = BeamSearch(request, ())
    while not beams.is_done:
        sequences = []
        for beam in beams.running:
            sequences.append(Sequence(0, request))
            for token_id in beam.token_ids:
                sequences[-1].append(token_id)
        logits = model(torch.tensor([sequence.token_ids for sequence in sequences])).logits[:, -1]
        offers = [one for one in offer(logits, sequences, ()) if one is not None]
        beams.advance(offers)
    result = beams.result()
    assert result is not None
    return result


@pytest.mark.parametrize("seed", range(6))
def test_beams_equal_transformers(oracle: Any, seed: int) -> None:
    """Forty searches a model: settings, prompts and end tokens drawn; alone, and in a left-padded batch."""
    rng = random.Random(seed)
    pair = oracle.pair("GPTJForCausalLM", n_layer=1 + seed % 2, eos_token_id=None, bos_token_id=None)
    with torch.no_grad():  # from hardly any preference to clear ones
        for model in (pair.ours, pair.theirs):
            model.lm_head.weight *= (0.3, 0.7, 1.5)[seed % 3]
    num_early = 0
    for _ in range(10):
        prompts = [[rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randint(1, 12))] for _ in range(4)]
        free = SamplingParams(num_beams=4, max_new_tokens=5, ignore_eos=True, num_return_sequences=4)
        likely = {token for found in search_theirs(pair.theirs, prompts, free) for one in found for token in one[0]}
        sampling = random_sampling(rng, sorted(likely))
        theirs = search_theirs(pair.theirs, prompts, sampling)
        for prompt, expected in zip(prompts, theirs, strict=True):
            ours = search(pair.ours, Request(key="a", prompt_token_ids=prompt, sampling=sampling))
            assert_same(ours, expected)
            num_early += len(ours.token_ids) < sampling.max_new_tokens
    assert num_early > 0, "where nothing ends early, little is proved"


class StopsAfterPair(StoppingCriteria):
    """Ends where the last two new tokens add up to a multiple of `divisor`: ours and theirs by the same rule."""

    def __init__(self, divisor: int, num_prompt_tokens: int) -> None:
        self.divisor = divisor
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.tensor([self.ends(row[self.num_prompt_tokens :]) for row in input_ids.tolist()])

    def ends(self, token_ids: Any) -> bool:
        return len(token_ids) > 1 and (token_ids[-1] + token_ids[-2]) % self.divisor == 0


@pytest.mark.parametrize("divisor", [1, 2, 3, 7])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_stop_conditions_end_beams_as_their_stopping_criteria_do(
    oracle: Any, divisor: int, early_stopping: Any
) -> None:
    pair = oracle.pair("GPTJForCausalLM", eos_token_id=None, bos_token_id=None)
    rng = random.Random(divisor)
    sampling = SamplingParams(
        num_beams=4, num_return_sequences=4, max_new_tokens=12, early_stopping=early_stopping, ignore_eos=True
    )
    for _ in range(5):
        prompt = [rng.randrange(1, VOCAB_SIZE) for _ in range(5)]
        stop = StopsAfterPair(divisor, len(prompt))
        ours = search(pair.ours, Request(key="a", prompt_token_ids=prompt, sampling=sampling, stop=stop.ends))
        found = [ours, *ours.alternatives]
        (theirs,) = search_theirs(pair.theirs, [prompt], sampling, stopping_criteria=[stop])
        assert [list(one.token_ids) for one in found] == [
            tokens[: len(one.token_ids)] for one, (tokens, _) in zip(found, theirs, strict=True)
        ]
        assert [one.score for one in found] == pytest.approx([score for _, score in theirs], rel=1e-5)


def test_the_mlperf_setting_equals_transformers(oracle: Any) -> None:
    pair = oracle.pair("GPTJForCausalLM", n_positions=160, eos_token_id=None, bos_token_id=None)
    free = SamplingParams(num_beams=4, max_new_tokens=60, ignore_eos=True)
    prompts = [[5, 6, 7], [11, 3, 90, 41], [33]]
    end = search_theirs(pair.theirs, prompts, free)[0][0][0][40]
    pair.ours.config.eos_token_id = end
    sampling = SamplingParams.mlperf_gptj()
    assert (sampling.num_beams, sampling.min_new_tokens, sampling.max_new_tokens) == (4, 30, 128)
    assert (sampling.early_stopping, sampling.length_penalty, sampling.temperature) == (True, 1.0, 0.0)
    ends = SamplingParams(**{**vars(sampling), "stop_token_ids": (end,), "ignore_eos": True})
    for prompt, expected in zip(prompts, search_theirs(pair.theirs, prompts, ends), strict=True):
        ours = search(pair.ours, Request(key="a", prompt_token_ids=prompt, sampling=ends))
        assert_same(ours, expected)
        assert len(ours.token_ids) >= 30
