"""Texts that are held to choices, a regex or a JSON schema are the same on vLLM as by the native engine, in float32."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from gptj_batch import Failed, Generated, Request, SamplingParams
from gptj_batch.backends import Backend
from gptj_batch.constraints.grammar import GrammarCompiler
from gptj_batch.errors import ConfigError
from gptj_batch.model_folder import resolve_folder
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import Constraint
from tests.parity.on_vllm import needs_vllm, running

pytestmark = [needs_vllm, pytest.mark.timeout(900)]

DEMO = Path(resolve_folder("demo"))
TEXTS = (
    "The team won the match in the last minute.\nTopic:",
    "Shares fell as the market closed.\nTopic:",
    "The minister met the president in the capital.\nSummary:",
    "A new chip doubles the speed of the machine.\nQuestion: What is new?\nAnswer:",
)
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"enum": ["World", "Sports"]}, "year": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["topic", "year"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO)


@pytest.fixture(scope="module")
def backends() -> Iterator[tuple[Backend, Backend]]:
    with running("native", DEMO) as native, running("vllm", DEMO, holds_texts=True) as vllm:
        yield native, vllm


def constraints(tokenizer: Tokenizer) -> dict[str, Constraint]:
    grammar = GrammarCompiler(tokenizer)
    return {
        "choices": grammar.choices(["World", "World Cup", "Sports", "a|b"], "task.choices"),
        "regex": grammar.regex("[A-Z][a-z]{2,8}( [a-z]+){0,3}", "task.regex"),
        "endless": grammar.regex("[a-z]+", "task.regex"),
        "schema": grammar.json_schema(SCHEMA, "task.json_schema"),
    }


def requests(tokenizer: Tokenizer, constraint: Constraint, num_tokens: int = 40) -> list[Request]:
    sampling = SamplingParams(max_new_tokens=num_tokens)
    prompts = tokenizer.encode_batch(TEXTS)
    return [
        Request(key=str(row), prompt_token_ids=ids, sampling=sampling, constraint=constraint)
        for row, ids in enumerate(prompts)
    ]


@pytest.mark.parametrize("name", ["choices", "regex", "endless", "schema"])
def test_texts_and_reasons_are_the_native_ones(
    backends: tuple[Backend, Backend], tokenizer: Tokenizer, name: str
) -> None:
    asked = requests(tokenizer, constraints(tokenizer)[name])
    native, vllm = (cast(Sequence[Generated], backend.run(asked)) for backend in backends)
    assert [(one.token_ids, one.finish_reason) for one in vllm] == [
        (one.token_ids, one.finish_reason) for one in native
    ]


def test_a_text_that_is_cut_ends_as_the_native_one_does(
    backends: tuple[Backend, Backend], tokenizer: Tokenizer
) -> None:
    asked = requests(tokenizer, constraints(tokenizer)["schema"], num_tokens=4)
    native, vllm = (backend.run(asked) for backend in backends)
    assert vllm == native and {cast(Generated, one).finish_reason for one in vllm} == {"length"}


def test_every_text_of_a_schema_is_json_of_it(backends: tuple[Backend, Backend], tokenizer: Tokenizer) -> None:
    results = backends[1].run(requests(tokenizer, constraints(tokenizer)["schema"]))
    texts = [tokenizer.decode(cast(Generated, one).token_ids) for one in results]
    assert {frozenset(json.loads(text)) for text in texts} == {frozenset(("topic", "year"))}


def test_requests_without_a_grammar_go_on_beside_them(backends: tuple[Backend, Backend], tokenizer: Tokenizer) -> None:
    held = requests(tokenizer, constraints(tokenizer)["regex"])
    free = [Request(key=f"free {one.key}", prompt_token_ids=one.prompt_token_ids) for one in held]
    native, vllm = (backend.run([*held, *free]) for backend in backends)
    assert vllm == native


def test_an_end_of_text_that_only_the_tokenizer_knows_is_refused(tmp_path: Path) -> None:
    for file in DEMO.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((DEMO / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    with pytest.raises(ConfigError, match="end of text"), running("vllm", tmp_path, holds_texts=True):
        pass


def test_an_engine_without_a_tokenizer_refuses_only_what_needs_one(tokenizer: Tokenizer) -> None:
    held = requests(tokenizer, constraints(tokenizer)["regex"])[0]
    with running("vllm", DEMO) as backend:
        refused, done = backend.run([held, Request(key="free", prompt_token_ids=held.prompt_token_ids)])
    assert isinstance(refused, Failed) and "without a tokenizer" in refused.error
    assert isinstance(done, Generated)
