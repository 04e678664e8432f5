"""What beam search gives in transformers, and random settings to ask it for."""

import random
from typing import Any

import pytest
import torch

from gptj_batch import Generated, SamplingParams

VOCAB_SIZE = 97
PAD = 0


def their_settings(sampling: SamplingParams) -> dict[str, Any]:
    return {
        "max_new_tokens": sampling.max_new_tokens,
        "min_new_tokens": sampling.min_new_tokens,
        "repetition_penalty": sampling.repetition_penalty,
        "eos_token_id": list(sampling.stop_token_ids) or None,
        "pad_token_id": PAD,
        "do_sample": False,
        "num_beams": sampling.num_beams,
        "length_penalty": sampling.length_penalty,
        "early_stopping": sampling.early_stopping,
        "num_return_sequences": sampling.num_return_sequences,
        "return_dict_in_generate": True,
        "output_scores": True,
    }


@torch.no_grad()
def search_theirs(
    model: Any, prompts: list[list[int]], sampling: SamplingParams, **more: Any
) -> list[list[tuple[list[int], float]]]:
    """Return what transformers finds for prompts of a left-padded batch: tokens and score, best first."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(ids, attention_mask=mask, **their_settings(sampling) | more)
    found = [
        (without_fill(tokens[width:], sampling), score)
        for tokens, score in zip(output.sequences.tolist(), output.sequences_scores.tolist(), strict=True)
    ]
    count = sampling.num_return_sequences
    return [found[first : first + count] for first in range(0, len(found), count)]


def without_fill(token_ids: list[int], sampling: SamplingParams) -> list[int]:
    """Cut a row off behind its end token."""
    ends = [place + 1 for place, token in enumerate(token_ids) if token in sampling.stop_token_ids]
    return token_ids[: ends[0]] if ends else token_ids


def assert_same(ours: Generated, theirs: list[tuple[list[int], float]]) -> None:
    found = [ours, *ours.alternatives]
    assert [list(one.token_ids) for one in found] == [token_ids for token_ids, _ in theirs]
    scores = [one.score for one in found if one.score is not None]
    assert scores == pytest.approx([score for _, score in theirs], rel=1e-5, abs=1e-5)


def random_sampling(rng: random.Random, likely: list[int]) -> SamplingParams:
    num_beams = rng.choice((2, 3, 4, 5))
    max_new_tokens = rng.choice((1, 2, 6, 14))
    return SamplingParams(
        num_beams=num_beams,
        num_return_sequences=rng.randint(1, num_beams),
        length_penalty=rng.choice((1.0, 0.0, 0.6, 2.0, -1.0)),
        early_stopping=rng.choice((True, False, "never")),
        max_new_tokens=max_new_tokens,
        min_new_tokens=rng.choice((0, 0, 1, min(4, max_new_tokens))),
        repetition_penalty=rng.choice((1.0, 1.0, 1.3, 0.8)),
        stop_token_ids=tuple(rng.sample(likely, rng.choice((0, 1, 1, 2, 3)))),
        ignore_eos=True,
    )
