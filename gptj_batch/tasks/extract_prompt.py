"""The task `extract` by prompt: a language model's continuation, held to parts of a context (`GPTJForCausalLM`).

The model reads the prompt, which shows it the context however the template does, and every token that it generates
goes on with some part of `context`; so an answer is a verbatim part of it, and nothing is matched afterwards. Decoding
is greedy: the model says which part, and where it ends, with a line break (unless `one_line` is false) or the end of
text.

With `max_answers` above 1 it may go on behind `separator` with the next answer; show it that layout in the prompt. What
an answer says is taken out of the context for the next ones, so that no two share a character or are the same text, and
the answers stand in the model's order. There may be fewer, as it also says when it is done.

Adds the columns of `gptj_batch.tasks.answers`. `answer_score` is the probability that the model itself, held to
nothing, gives to the answer's tokens behind the prompt and earlier answers: exp of the sum of their log-probabilities,
without what ended it. A text that the context holds several times is located at the first place. With
`allow_no_answer` the model may end at once; the score is then the probability of that end.

An answer is over with `max_answer_tokens`; it loses a word that is cut, but its first word is completed. The context is
never cut, also where `truncate` keeps some of it from the prompt.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from gptj_batch.constraints.answers import AnswersConstraint
from gptj_batch.constraints.vocabulary import Vocabulary
from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.model_folder import Head
from gptj_batch.prompts.template import PromptTemplate
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import TruncationSide
from gptj_batch.requests import AnyRequest, Request, SamplingParams
from gptj_batch.results import AnyResult, Generated
from gptj_batch.tasks.answers import ANSWER_SCHEMA, EMPTY_CONTEXT, Answer, answer_columns, no_answer, span_answer
from gptj_batch.tasks.base import Encoded, Settings
from gptj_batch.tasks.prompted import PromptEncoder, rendered

LINE_BREAK = b"\n"


class ExtractPromptSettings(Settings):
    """The block `task` of a job of kind `extract` with method `prompt`."""

    head: ClassVar[Head] = "causal-lm"
    kind: Literal["extract"]
    method: Literal["prompt"]
    """`prompt`: a language model, held to parts of the context."""
    prompt: str = Field(min_length=1)
    """Template over the record's columns, e.g. "{{ text }}\\nQuestion: {{ question }}\\nAnswer:"."""
    context: str = Field(min_length=1)
    """Template over the record's columns: the text that the answers are taken from, e.g. "{{ text }}"."""
    max_answers: int = Field(default=1, ge=1, le=100)
    """The most answers that the model may give."""
    separator: str = ";"
    """What stands between two answers, where there may be several."""
    max_answer_tokens: int = Field(default=30, ge=1, le=1024)
    """The most tokens of an answer."""
    whole_words: bool = True
    """An answer cuts no word; Chinese, Japanese and Korean characters are words of their own."""
    one_line: bool = True
    """A line break ends the answers; false lets them go over several lines, and only the end of text ends them."""
    allow_no_answer: bool = False
    """The model may end without an answer, which is null then; an empty context has a null answer."""
    truncate: TruncationSide = "error"
    """A prompt that does not fit: cut at its left or right end, or make it the row's error."""
    deduplicate: bool = False
    """Compute rows of the same prompt and context once, within what a replica remembers."""

    @property
    def max_new_tokens(self) -> int:
        """Return the most tokens of a continuation: each time a space, an answer, and a separator byte by byte."""
        num_separator = len(self.separator.encode()) if self.max_answers > 1 else 0
        return self.max_answers * (1 + self.max_answer_tokens + num_separator)

    @model_validator(mode="after")
    def _check_separator(self) -> Self:
        if self.max_answers > 1 and not self.separator.rstrip(" "):
            raise ValueError(
                f"separator ({self.separator!r}) must be more than spaces, where max_answers ({self.max_answers}) is "
                "above 1; a space may stand in any answer"
            )
        return self


class ExtractPromptTask:
    """See the module."""

    def __init__(self, settings: ExtractPromptSettings) -> None:
        self.settings = settings
        self.template = PromptTemplate(settings.prompt, "task.prompt")
        self._context = PromptTemplate(settings.context, "task.context")
        self.head: Head = settings.head
        self.reads = self.template.columns | self._context.columns
        self.adds = ANSWER_SCHEMA

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError where a template uses a column that is not among `names`."""
        self.template.check_columns(names)
        self._context.check_columns(names)

    @property
    def raw_type(self) -> pa.DataType:
        """Return the packed form: the tokens of the continuation."""
        return pa.struct([("token_ids", pa.list_(pa.int32())), ("logprobs", pa.list_(pa.float32()))])

    @property
    def notes_type(self) -> pa.DataType:
        """Return what is remembered of a row: its context."""
        return pa.struct([("context", pa.string())])

    @property
    def deduplicate(self) -> bool:
        """Say whether rows of the same prompt and context are computed once."""
        return self.settings.deduplicate

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Render the prompt. Raises RecordError."""
        return self.template.render(record)

    def context(self, record: Mapping[str, Any]) -> str:
        """Render the context. Raises RecordError, also for an empty one that would need an answer."""
        context = self._context.render(record)
        if not context.strip() and not self.settings.allow_no_answer:
            raise RecordError(EMPTY_CONTEXT)
        return context

    def constraint(self, context: str, vocabulary: Vocabulary) -> AnswersConstraint:
        """Return what holds a continuation to the context."""
        settings = self.settings
        return AnswersConstraint(
            context,
            vocabulary,
            max_answer_tokens=settings.max_answer_tokens,
            max_answers=settings.max_answers,
            separator=settings.separator if settings.max_answers > 1 else "",
            whole_words=settings.whole_words,
            allow_none=settings.allow_no_answer,
        )

    def stop_token_ids(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        """Return the tokens that end the answers: those that begin with a line break, but for the separator's own."""
        if not self.settings.one_line:
            return ()
        separator = self.settings.separator.encode() if self.settings.max_answers > 1 else b""
        texts = enumerate(vocabulary.bytes_of)
        return tuple(token for token, text in texts if text.startswith(LINE_BREAK) and not separator.startswith(text))

    def encoder(self, tokenizer: Tokenizer, max_context_tokens: int) -> "ExtractPromptEncoder":
        """Return the encoder of prompts. Raises ConfigError where the answers leave no room for them."""
        return ExtractPromptEncoder(self, tokenizer, max_context_tokens)

    def request_maker(self, tokenizer: Tokenizer) -> "ExtractPromptRequestMaker":
        """Return the maker of requests. Raises CheckpointError for a tokenizer whose tokens have no bytes."""
        return ExtractPromptRequestMaker(self, tokenizer)

    def pack(self, results: Sequence[AnyResult]) -> dict[str, Any]:
        """Return one row's tokens."""
        (result,) = results
        assert isinstance(result, Generated)
        return {"token_ids": result.token_ids, "logprobs": result.logprobs}

    def columns(self, raw: Sequence[Any], notes: Sequence[Any], tokenizer: Tokenizer) -> list[pa.Array]:
        """Return the added columns."""
        vocabulary = Vocabulary(tokenizer)
        ending = frozenset(self.stop_token_ids(vocabulary))
        return answer_columns(
            [
                None if row is None else self._answers(row, note["context"], vocabulary, ending)
                for row, note in zip(raw, notes, strict=True)
            ]
        )

    def _answers(
        self, raw: Mapping[str, Any], context: str, vocabulary: Vocabulary, ending: frozenset[int]
    ) -> list[Answer]:
        token_ids, logprobs = raw["token_ids"], raw["logprobs"]
        text_ids = token_ids[:-1] if token_ids and token_ids[-1] in ending else token_ids
        found = [
            span_answer(context, place.start, place.end, math.exp(sum(logprobs[place.first : place.stop])))
            for place in self.constraint(context, vocabulary).locate(text_ids)
        ]
        return [answer for answer in found if answer is not None] or [no_answer(math.exp(sum(logprobs)))]


class ExtractPromptEncoder:
    """Encode prompts, and keep each record's context."""

    def __init__(self, task: ExtractPromptTask, tokenizer: Tokenizer, max_context_tokens: int) -> None:
        reserved = task.settings.max_new_tokens
        if reserved >= max_context_tokens:
            raise ConfigError(
                f"task.max_answer_tokens: {task.settings.max_answer_tokens} for each of {task.settings.max_answers} "
                f"(max_answers), with what stands between, leave no room for a prompt in the model's context of "
                f"{max_context_tokens} (n_positions in config.json); lower one of the two"
            )
        self._task = task
        self._encode = PromptEncoder(task.template, task.settings.truncate, tokenizer, max_context_tokens, reserved)

    def __call__(self, records: Sequence[Mapping[str, Any] | RecordError]) -> list[Encoded | RecordError]:
        """Return each record's tokens and context, or why there are none."""
        contexts = [rendered(record, self._task.context) for record in records]
        readable = [
            context if isinstance(context, RecordError) else record
            for record, context in zip(records, contexts, strict=True)
        ]
        return [
            _explained(row) if isinstance(row, RecordError) else _with_context(row, context)
            for row, context in zip(self._encode(readable), contexts, strict=True)
        ]


class ExtractPromptRequestMaker:
    """Turns a row into one request, held to its own context."""

    def __init__(self, task: ExtractPromptTask, tokenizer: Tokenizer) -> None:
        self._task = task
        self._vocabulary = Vocabulary(tokenizer)
        self._sampling = SamplingParams(
            max_new_tokens=task.settings.max_new_tokens,
            stop_token_ids=task.stop_token_ids(self._vocabulary),
            logprobs=True,
        )

    def requests(self, key: str, prompt_token_ids: Sequence[int], notes: Any = None) -> list[AnyRequest]:
        """Return the row's one request."""
        constraint = self._task.constraint(notes["context"], self._vocabulary)
        return [Request(key=key, prompt_token_ids=prompt_token_ids, sampling=self._sampling, constraint=constraint)]


def _with_context(row: Encoded, context: str | RecordError) -> Encoded:
    return replace(row, notes={"context": context})


def _explained(error: RecordError) -> RecordError:
    """Return why a prompt does not fit, with this task's name for what stands behind it."""
    return RecordError(str(error).replace("max_new_tokens", "max_answer_tokens"))
