"""Grammar: choices, a regex or a JSON schema as a constraint, decided by llguidance."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import llguidance

from gptj_batch.errors import ConfigError, shorten
from gptj_batch.prompts.tokenizer import END_OF_TEXT, Tokenizer
from gptj_batch.requests import Language

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# JSON as Python's json.dumps writes it. Free white space would leave a model room to go on for ever without a value.
JSON_STYLE: Final["JsonCompileOptions"] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


class GrammarCompiler:
    """Compiles grammars for one tokenizer; made once per job, as taking in 50,400 tokens lasts 0.2 s."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take in a byte-level tokenizer. Raises CheckpointError for one whose tokens have no bytes."""
        self._tokenizer = _as_llguidance(tokenizer)

    def choices(self, texts: Sequence[str], setting: str) -> "GrammarConstraint":
        """Return the constraint to exactly one of `texts`, with or without one space before it.

        Words' tokens begin with the space before the word; without leave to generate it, a model had to begin with
        tokens that it hardly ever saw behind a prompt. Raises ConfigError naming `setting`.
        """
        alternatives = "|".join(map(_literal, texts))
        return self.regex(f" ?(?:{alternatives})", setting)

    def regex(self, pattern: str, setting: str) -> "GrammarConstraint":
        """Return the constraint to texts that match the whole of `pattern`. Raises ConfigError naming `setting`."""
        grammar = llguidance.LLMatcher.grammar_from_regex(pattern)
        return self._compile(grammar, Language(regex=pattern), setting)

    def json_schema(self, schema: Mapping[str, Any] | str, setting: str) -> "GrammarConstraint":
        """Return the constraint to JSON that satisfies `schema`, itself given as an object or as JSON.

        Raises ConfigError naming `setting`, also for keywords that llguidance does not enforce.
        """
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else dict(schema)
        except ValueError as error:
            raise ConfigError(f"{setting}: must be a JSON schema, and is not JSON: {_one_line(str(error))}") from error
        if not isinstance(parsed, dict):
            raise ConfigError(f'{setting}: must be a JSON object such as {{"type": "object"}}, got {shorten(schema)}')
        grammar = llguidance.LLMatcher.grammar_from_json_schema(parsed, defaults=JSON_STYLE)
        with_style = json.loads(grammar)["grammars"][0]["json_schema"]  # the schema, with what JSON_STYLE left open
        language = Language(json_schema=json.dumps(with_style))
        return self._compile(grammar, language, setting)

    def _compile(self, grammar: str, language: Language, setting: str) -> "GrammarConstraint":
        is_error, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
        if is_error:
            raise ConfigError(f"{setting}: cannot be enforced: {_one_line(messages[0])}")
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if not matcher.is_accepting() and not any(_allowed(matcher, self._tokenizer.eos_token)):
            reason = _one_line(matcher.get_error()) or "there is no text that it allows"
            raise ConfigError(f"{setting}: cannot be enforced: {reason}")
        return GrammarConstraint(matcher, self._tokenizer.eos_token, language)


class GrammarConstraint:
    """A compiled grammar; a sequence starts with a copy of its matcher, which is made in 0.02 ms."""

    def __init__(self, matcher: llguidance.LLMatcher, end_id: int, language: Language) -> None:
        self._matcher = matcher
        self._end_id = end_id
        self.language = language

    def start(self) -> "GrammarState":
        """Return the state of a sequence that has generated nothing yet."""
        return GrammarState(self._matcher.deep_copy(), self._end_id)


class GrammarState:
    """Where one sequence stands in a grammar; see `ConstraintState`.

    Raises RuntimeError where llguidance gives up on a grammar, which is too large then, or gets a token that it did
    not allow.
    """

    def __init__(self, matcher: llguidance.LLMatcher, end_id: int) -> None:
        self._matcher = matcher
        self._end_id = end_id

    def allowed(self) -> bytes:
        """Return a bit a token; the end of text is none of them."""
        bits = _allowed(self._matcher, self._end_id)
        self._check()
        return bits

    def accept(self, token_id: int) -> None:
        """Go on by one token."""
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def may_end(self) -> bool:
        """Say whether the text so far is in the language."""
        return self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """Say whether no longer text in the language begins with the text so far."""
        return self._matcher.is_stopped() and self._matcher.is_accepting()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError("llguidance has given up")  # its own message may quote what was generated


class _Words:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        end_id = tokenizer.token_id(END_OF_TEXT)
        added = tokenizer.added_token_ids
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self.bos_token_id = None
        # Without an end of text an id behind the last serves; it is never handed out.
        if end_id is None:
            end_id = len(self.tokens)
            self.tokens.append(END_OF_TEXT.encode())
        self.eos_token_id = end_id
        self.special_token_ids = sorted(added | {end_id})

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_batch([text])[0]


def _literal(text: str) -> str:
    """Return the regex of exactly this text; llguidance's own strings may not hold some control codes."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def _as_llguidance(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Words(tokenizer)))


def _allowed(matcher: llguidance.LLMatcher, end_id: int) -> bytes:
    """Return the matcher's mask without the end of text."""
    bits = bytearray(matcher.compute_bitmask())
    bits[end_id // 8] &= ~(1 << end_id % 8)
    return bytes(bits)


def _one_line(message: str) -> str:
    return shorten(" ".join(message.split()), 300)
