import json
import random
import re
from typing import Any

import jsonschema
import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj_batch.constraints.grammar import JSON_STYLE, GrammarCompiler, _literal
from gptj_batch.errors import ConfigError
from gptj_batch.prompts.tokenizer import END_OF_TEXT, Tokenizer
from gptj_batch.requests import Constraint

from .walks import NAMES, listed, text_bytes, tokenizer_of, walk

COMPILERS = {"tiny": GrammarCompiler(tokenizer_of("tiny")), "demo": GrammarCompiler(tokenizer_of("demo"))}
REGEXES = [
    r"[0-9]{3}",
    r"(yes|no)!?", r"^[a-z]{1,8}@[A-Z_]{1,5}\.(com|org)$", "é😀{0,3}|a\nb", r"a/b\\\"",
    r"(?i)hello", r"[^a]{1,3}?b",
]  # fmt: skip
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "topic": {"enum": ["World", "Sports", 'quoted "x"', "é😀"]},
            "score": {"type": "integer", "minimum": 0, "maximum": 100},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
            "sure": {"type": "boolean"},
        },
        "required": ["topic", "score"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-c]{1,3}$"}]},
    {
        "$defs": {"n": {"const": 7}},
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/n"}},
        "required": ["n"],
        "additionalProperties": False,
    },
]


def compiler_of(name: str) -> GrammarCompiler:
    if name not in COMPILERS:
        COMPILERS[name] = GrammarCompiler(tokenizer_of(name))
    return COMPILERS[name]


def texts(name: str, constraint: Constraint, count: int, max_tokens: int = 40) -> list[str]:
    """Whole texts that walks come to; what was cut is left out."""
    rng = random.Random(0)
    walks = [walk(constraint, rng, max_tokens) for _ in range(count)]
    return [text_bytes(tokenizer_of(name), token_ids).decode() for token_ids, is_whole in walks if is_whole]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", REGEXES)
def test_every_text_matches_the_whole_regex(name: str, pattern: str) -> None:
    found = texts(name, compiler_of(name).regex(pattern, "task.regex"), 100)
    assert len(found) > 30
    assert all(re.fullmatch(pattern, text) for text in found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("as_text", [False, True])
def test_every_text_is_json_of_the_schema(name: str, schema: dict[str, Any], as_text: bool) -> None:
    written = json.dumps(schema) if as_text else schema
    found = texts(name, compiler_of(name).json_schema(written, "task.json_schema"), 60, 80)
    assert len(found) > 20
    for text in found:
        jsonschema.validate(json.loads(text), schema)


def test_json_is_written_as_python_writes_it() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": [1, 2]}}, "required": ["a", "b"]}
    schema["additionalProperties"] = False
    assert set(texts("demo", compiler_of("demo").json_schema(schema, "x"), 5, 80)) == {'{"a": 1, "b": [1, 2]}'}


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_can_be_made_and_nothing_else(name: str) -> None:
    choices = [
        "World",
        "Wor",
        " x",
        'say "hi" \\n',
        "new\nline",
        "é😀",
        "{x}|[y]*",
        "<[5]>",
        "\t\u2028\x7f\0",
        END_OF_TEXT,
    ]
    found = set(texts(name, compiler_of(name).choices(choices, "task.choices"), 600, 80))
    assert found <= {space + text for text in choices for space in ("", " ")}
    assert set(choices) <= found | {text.removeprefix(" ") for text in found}


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_choices_may_hold_any_text(choices: list[str]) -> None:
    for text in texts("tiny", COMPILERS["tiny"].choices(choices, "task.choices"), 3, 2000):
        assert text in choices or text.removeprefix(" ") in choices


def test_no_token_is_allowed_that_leads_to_no_choice() -> None:
    # Where all texts go on with the same bytes, llguidance allows but one way to write them: the usual one.
    tokenizer = tokenizer_of("tiny")
    whole = ["the weather", "the world", "then", "wé", "w😀"]
    wanted = [text.encode() for text in whole] + [b" " + text.encode() for text in whole]
    constraint = COMPILERS["tiny"].choices(whole, "x")
    rng = random.Random(1)
    for _ in range(30):
        state, so_far = constraint.start(), b""
        while not state.is_complete:
            possible = {
                token
                for token in range(tokenizer.vocab_size)
                if token not in tokenizer.added_token_ids
                and any(text.startswith(so_far + tokenizer.token_bytes(token)) for text in wanted)
            }
            allowed = listed(state.allowed())
            assert set(allowed) <= possible and bool(allowed) == bool(possible)
            assert state.may_end == (so_far in wanted)
            token = rng.choice(allowed)
            so_far += tokenizer.token_bytes(token)
            state.accept(token)
        assert so_far in wanted


@pytest.mark.parametrize("name", NAMES)
def test_added_tokens_are_never_allowed(name: str) -> None:
    tokenizer = tokenizer_of(name)
    state = compiler_of(name).regex(r"(.|\n)*", "x").start()
    for _ in range(5):
        allowed = listed(state.allowed())
        assert allowed and not tokenizer.added_token_ids & set(allowed) and max(allowed) < tokenizer.vocab_size
        state.accept(allowed[len(allowed) // 2])


def test_states_of_one_constraint_do_not_share_anything() -> None:
    constraint = COMPILERS["tiny"].regex("ab|cd", "x")
    first, second = constraint.start(), constraint.start()
    before = second.allowed()
    first.accept(listed(first.allowed())[0])
    assert second.allowed() == before != first.allowed()


def test_a_tokenizer_without_an_end_of_text_will_do() -> None:
    backend = tokenizer_of("tiny")._backend  # the only way to one: all that are trained here have it
    written = json.loads(backend.to_str())
    written["added_tokens"] = []
    written["model"]["vocab"].pop(END_OF_TEXT)
    written["model"]["vocab"] = {
        token: place for place, token in enumerate(sorted(written["model"]["vocab"], key=written["model"]["vocab"].get))
    }
    without = Tokenizer(type(backend).from_str(json.dumps(written)))
    assert without.token_id(END_OF_TEXT) is None
    constraint = GrammarCompiler(without).choices(["the", "world"], "x")
    found = {text_bytes(without, walk(constraint, random.Random(seed), 9)[0]) for seed in range(50)}
    assert found == {b"the", b"world", b" the", b" world"}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("regex", "(a", "task.regex: cannot be enforced: .*unclosed group"),
        ("regex", r"(a)\1", "task.regex: cannot be enforced: .*backreferences are not supported"),
        ("regex", "a(?=b)", "task.regex: cannot be enforced: .*look-around"),
        ("regex", r"[^\s\S]", "task.regex: cannot be enforced: "),
        ("json_schema", "{", "task.json_schema: must be a JSON schema, and is not JSON: "),
        ("json_schema", "true", "task.json_schema: must be a JSON object"),
        ("json_schema", {"type": "text"}, "task.json_schema: cannot be enforced: Invalid type: text"),
        ("json_schema", {"not": {}}, "task.json_schema: cannot be enforced: Unimplemented keys"),
        ("json_schema", {"$ref": "http://x/y"}, "task.json_schema: cannot be enforced: .*does not fetch"),
        ("json_schema", {"type": "integer", "minimum": 3, "maximum": 2}, "task.json_schema: .*Unsatisfiable"),
    ],
)
def test_what_cannot_be_enforced_is_a_configuration_error_that_names_the_setting(
    kind: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        getattr(COMPILERS["tiny"], kind)(value, f"task.{kind}")
    assert "\n" not in str(caught.value)


def test_a_token_that_was_not_allowed_and_a_grammar_that_is_too_large_raise_without_quoting() -> None:
    tokenizer = tokenizer_of("tiny")
    state = COMPILERS["tiny"].regex("[0-9]+", "x").start()
    with pytest.raises(RuntimeError, match=r"^llguidance has given up$"):
        state.accept(tokenizer.encode_batch(["w"])[0][0])
    with pytest.raises((RuntimeError, ConfigError)):
        walk(COMPILERS["tiny"].regex("x{1000000}", "x"), random.Random(0), 2_000_000)


@pytest.mark.parametrize("setting", ["choices", "regex", "json_schema"])
def test_what_a_constraint_says_it_allows_is_the_grammar_that_it_enforces(setting: str) -> None:
    compiler = compiler_of(NAMES[0])
    value: Any = {"choices": ["a|b", "c d"], "regex": "[a-c]{2,4}", "json_schema": SCHEMA}[setting]
    constraint = getattr(compiler, setting)(value, "task.x")
    language = constraint.language
    if language.regex is not None:
        said = llguidance.LLMatcher.grammar_from_regex(language.regex)
        allowed = f" ?(?:{'|'.join(map(_literal, value))})" if setting == "choices" else value
        assert said == llguidance.LLMatcher.grammar_from_regex(allowed)
    else:  # as vLLM's backend of llguidance reads a schema: with white space wherever it says nothing about that
        said = llguidance.LLMatcher.grammar_from_json_schema(
            language.json_schema, defaults={"whitespace_flexible": True}
        )
        assert said == llguidance.LLMatcher.grammar_from_json_schema(value, defaults=JSON_STYLE)


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
