"""The tokenizers that constraints are tested with, and walks through a constraint by tokens drawn at random."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from tiny_tokenizer import train_tokenizer

from gptj_batch.demo import demo_folder
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import Allowed, Constraint

GPT2 = Path(__file__).parents[4] / "shared" / "gpt2-bpe"
GPTJ_VOCAB_SIZE = 50_400
NAMES = ("tiny", "demo", "gpt2")


@cache
def tokenizer_of(name: str) -> Tokenizer:
    if name == "tiny":
        return Tokenizer(train_tokenizer())
    if name == "demo":
        return Tokenizer.from_folder(demo_folder("causal-lm"))
    if not GPT2.is_dir():
        pytest.skip("GPT-2's vocabulary is not in ../shared/gpt2-bpe")
    return Tokenizer.from_vocab_files(GPT2 / "vocab.json", GPT2 / "merges.txt", GPTJ_VOCAB_SIZE)


def listed(allowed: Allowed) -> list[int]:
    """The ids that are allowed, in order."""
    if not isinstance(allowed, bytes):
        return sorted(allowed)
    return [8 * place + bit for place, byte in enumerate(allowed) if byte for bit in range(8) if byte >> bit & 1]


def walk(constraint: Constraint, rng: random.Random, max_tokens: int, end_share: float = 0.3) -> tuple[list[int], bool]:
    """Tokens drawn among those that are allowed, and whether the walk ended where an end was permitted."""
    state, token_ids = constraint.start(), []
    while len(token_ids) < max_tokens and not state.is_complete:
        allowed = listed(state.allowed())
        if state.may_end and (not allowed or rng.random() < end_share):
            return token_ids, True
        assert allowed, "a dead end"
        token_ids.append(rng.choice(allowed))
        state.accept(token_ids[-1])
    assert not state.is_complete or state.may_end
    return token_ids, state.may_end


def text_bytes(tokenizer: Tokenizer, token_ids: Sequence[int]) -> bytes:
    return b"".join(map(tokenizer.token_bytes, token_ids))
