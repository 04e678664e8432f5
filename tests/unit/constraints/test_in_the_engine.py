"""Constraints and the engine together: whatever a random model would say, what comes out is what was asked for."""

import json
import re
from collections.abc import Sequence
from functools import cache

import jsonschema
import pytest
import torch

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.constraints.grammar import GrammarCompiler
from gptj_batch.constraints.verbatim import VerbatimConstraint
from gptj_batch.constraints.vocabulary import Vocabulary
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.model import GPTJConfig, GPTJForCausalLM
from gptj_batch.prompts.tokenizer import END_OF_TEXT
from gptj_batch.requests import Constraint

from .test_verbatim import PARAGRAPH
from .walks import tokenizer_of

TOKENIZER = tokenizer_of("demo")
SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"enum": ["World", "Sports"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["topic"],
    "additionalProperties": False,
}  # fmt: skip


@cache
def engine() -> Engine:
    """A model whose vocabulary is larger than the tokenizer's, as GPT-J's is."""
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=TOKENIZER.vocab_size + 43,
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        rotary_dim=8,
        eos_token_id=TOKENIZER.token_id(END_OF_TEXT),
        initializer_range=0.35,
    )
    return Engine(GPTJForCausalLM(config).eval(), EngineConfig(num_blocks=80, max_running=8))


@cache
def grammar() -> GrammarCompiler:
    return GrammarCompiler(TOKENIZER)


def requests(constraint: Constraint, count: int = 40, max_new_tokens: int = 60) -> list[Request]:
    """Greedy ones and drawn ones, with all the filters."""
    ways: Sequence[dict[str, float]] = (
        {},
        {"temperature": 1.5},
        {"temperature": 1.0, "top_p": 0.8, "min_p": 0.01},
        {"temperature": 0.9, "top_k": 40, "repetition_penalty": 1.3},
    )
    return [
        Request(
            key=str(number),
            prompt_token_ids=[3, number, 5],
            sampling=SamplingParams(max_new_tokens=max_new_tokens, seed=number, **ways[number % len(ways)]),  # type: ignore[arg-type]
            constraint=constraint,
        )
        for number in range(count)
    ]


def generated(constraint: Constraint, **numbers: int) -> list[Generated]:
    results = engine().run(requests(constraint, **numbers))
    found = [result for result in results if isinstance(result, Generated)]
    assert len(found) == len(results)
    return found


def whole_texts(constraint: Constraint, **numbers: int) -> list[str]:
    found = [result for result in generated(constraint, **numbers) if result.finish_reason == "stop"]
    return [TOKENIZER.decode(result.token_ids, skip_special_tokens=True) for result in found]


def test_choices() -> None:
    found = whole_texts(grammar().choices(["World", "Sports", "Sci/Tech"], "x"))
    assert len(found) == 40
    assert {text.removeprefix(" ") for text in found} <= {"World", "Sports", "Sci/Tech"}


def test_a_regex() -> None:
    found = whole_texts(grammar().regex("[a-z]{1,9}: [0-9]{2}(!|é)", "x"))
    assert len(found) == 40
    assert all(re.fullmatch("[a-z]{1,9}: [0-9]{2}(!|é)", text) for text in found)


def test_a_schema() -> None:
    found = whole_texts(grammar().json_schema(SCHEMA, "x"))
    assert len(found) > 30
    for text in found:
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("whole_words", [False, True])
def test_parts_of_a_text(whole_words: bool) -> None:
    constraint = VerbatimConstraint(PARAGRAPH, Vocabulary(TOKENIZER), whole_words=whole_words, max_chars=40)
    results = generated(constraint, count=60)
    assert sum(result.finish_reason == "stop" for result in results) > 50
    for result in results:
        place = constraint.locate(result.token_ids)
        text = TOKENIZER.decode(result.token_ids, skip_special_tokens=True).strip()
        if result.finish_reason == "stop":
            assert place is not None and PARAGRAPH[place[0] : place[1]] == text


def test_neighbours_with_other_constraints_or_none_change_nothing() -> None:
    kinds: list[Constraint | None] = [
        grammar().regex("[a-z]+", "x"),
        None,
        VerbatimConstraint(PARAGRAPH, Vocabulary(TOKENIZER)),
        grammar().choices(["World", "Sports"], "x"),
    ]
    mixed = [
        Request(key="a", prompt_token_ids=[3, n], sampling=each.sampling, constraint=kinds[n % 4])
        for n, each in enumerate(requests(grammar().regex("a", "x"), 16, 20))
    ]
    together = engine().run(mixed)
    assert together == [engine().run([request])[0] for request in mixed]
