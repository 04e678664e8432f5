r"""The task `extract` by head: the span of a context that answers a question (`GPTJForQuestionAnswering`).

The model reads "Question: {question}\nContext: {context}", the question first, because attention is causal: a token of
the context can then look back at it. The null position, where "there is no answer" is scored, is the last token before
the context, the colon. A context that does not fit is read in windows, each behind the whole question, that overlap by
`stride_tokens`. `gptj_batch.tasks.spans` has the scores.

Adds `answer_text`, `answer_start`, `answer_end`, `answer_score` (its probability) and `answers` (the `top_k`, likeliest
first, without overlaps). Offsets are Python's, in characters of the rendered context, and context[start:end] is the
text, which neither begins nor ends in white space. With `allow_no_answer`, "no answer" is one of the answers, with null
text and offsets, at the place that its probability gives it; probabilities are the same with and without.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from gptj_batch.demo import QUESTION_ANSWERING_LAYOUT, QUESTION_ANSWERING_PREFIX
from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.model_folder import Head
from gptj_batch.prompts.template import PromptTemplate
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import AnyRequest, SpanRequest
from gptj_batch.results import AnyResult, SpanLogits
from gptj_batch.tasks.base import Encoded, Settings, column
from gptj_batch.tasks.prompted import rendered
from gptj_batch.tasks.spans import SpanScores, Window, windows

MAX_OVERLAP_TOKENS = 128


class ExtractSettings(Settings):
    """The block `task` of a job of kind `extract`."""

    head: ClassVar[Head] = "question-answering"
    kind: Literal["extract"]
    method: Literal["head"] = "head"
    """`head`: a trained question-answering head."""
    question: str = Field(min_length=1)
    """Template over the record's columns, or one question for all of them."""
    context: str = Field(min_length=1)
    """Template over the record's columns: the text that holds the answer."""
    stride_tokens: int | None = Field(default=None, ge=0)
    """Tokens that two windows of a long context share; null is 128, or half a window where that is less."""
    max_answer_tokens: int = Field(default=30, ge=1, le=1024)
    """The most tokens of an answer."""
    max_question_tokens: int = Field(default=64, ge=1)
    """A longer question is the row's error."""
    top_k: int = Field(default=1, ge=1, le=1000)
    """The length of `answers`."""
    allow_no_answer: bool = False
    """Answer null where "no answer" is likelier than every span; else always the best span."""


class ExtractTask:
    """See the module."""

    def __init__(self, settings: ExtractSettings) -> None:
        self.settings = settings
        self._question = PromptTemplate(settings.question, "task.question")
        self._context = PromptTemplate(settings.context, "task.context")

    @property
    def head(self) -> Head:
        """Return the head that is asked."""
        return self.settings.head

    @property
    def reads(self) -> frozenset[str]:
        """Return the columns of the question and the context."""
        return self._question.columns | self._context.columns

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError where a template uses a column that is not among `names`."""
        self._question.check_columns(names)
        self._context.check_columns(names)

    @property
    def adds(self) -> pa.Schema:
        """Return the columns that the task adds."""
        answer = [("text", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("score", pa.float64())]
        return pa.schema(
            [*((f"answer_{name}", type_) for name, type_ in answer), ("answers", pa.list_(pa.struct(answer)))]
        )

    @property
    def raw_type(self) -> pa.DataType:
        """Return the packed form: the logits of each window."""
        logits = pa.list_(pa.float32())
        return pa.list_(pa.struct([("starts", logits), ("ends", logits)]))

    @property
    def notes_type(self) -> pa.DataType:
        """Return what is known of a context once it is encoded.

        num_prefix: tokens before the context    starts, ends: the characters of each of its tokens
        """
        window = pa.struct([("first", pa.int32()), ("stop", pa.int32())])
        chars = pa.list_(pa.int32())
        return pa.struct(
            [
                ("context", pa.string()),
                ("num_prefix", pa.int32()),
                ("starts", chars),
                ("ends", chars),
                ("windows", pa.list_(window)),
            ]
        )

    def prompt(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Render the question and the context. Raises RecordError."""
        question, context = self._question.render(record), self._context.render(record)
        if not question.strip():
            raise RecordError("the question is empty")
        if not context.strip() and not self.settings.allow_no_answer:
            raise RecordError("the context is empty and holds no answer; allow_no_answer makes that a null answer")
        return question, context

    def encoder(self, tokenizer: Tokenizer, max_context_tokens: int) -> "ExtractEncoder":
        """Return the encoder of questions and contexts. Raises ConfigError where no context would fit a window."""
        return ExtractEncoder(self, tokenizer, max_context_tokens)

    def request_maker(self, tokenizer: Tokenizer) -> "ExtractTask":
        """Return what makes requests: the task itself, since nothing needs the tokenizer."""
        return self

    def requests(self, key: str, prompt_token_ids: Sequence[int], notes: Any = None) -> list[AnyRequest]:
        """Return one request a window: the question and a part of the context."""
        num_prefix = notes["num_prefix"]
        prefix, context = prompt_token_ids[:num_prefix], prompt_token_ids[num_prefix:]
        return [
            SpanRequest(
                key=f"{key}#{number}",
                prompt_token_ids=[*prefix, *context[window["first"] : window["stop"]]],
                first_token=num_prefix - 1,
            )
            for number, window in enumerate(notes["windows"])
        ]

    def pack(self, results: Sequence[AnyResult]) -> list[dict[str, Any]]:
        """Return one row's logits."""
        of_windows = [result for result in results if isinstance(result, SpanLogits)]
        return [{"starts": window.start_logits, "ends": window.end_logits} for window in of_windows]

    def columns(self, raw: Sequence[Any], notes: Sequence[Any], tokenizer: Tokenizer) -> list[pa.Array]:
        """Return the added columns."""
        rows = [None if row is None else self._answers(row, note) for row, note in zip(raw, notes, strict=True)]
        by_name: dict[str, list[Any]] = {
            f"answer_{name}": [None if answers is None else answers[0][name] for answers in rows]
            for name in ("text", "start", "end", "score")
        }
        by_name["answers"] = rows
        return [column(by_name[field.name], field) for field in self.adds]

    def _answers(self, raw: Sequence[Any], notes: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the likeliest answers; of equal ones, a text goes before none."""
        context, starts, ends = notes["context"], notes["starts"], notes["ends"]
        scores = SpanScores(
            [Window(window["first"], window["stop"]) for window in notes["windows"]],
            [(window["starts"], window["ends"]) for window in raw],
            starts,
            ends,
            self.settings.max_answer_tokens,
        )
        answers: list[dict[str, Any]] = []
        for span in scores.best(self.settings.top_k):
            start, end = starts[span.first], ends[span.last]
            answers.append({"text": context[start:end], "start": start, "end": end, "score": span.probability})
        if self.settings.allow_no_answer:
            answers.append({"text": None, "start": None, "end": None, "score": scores.null_probability})
        return sorted(answers, key=lambda answer: answer["score"], reverse=True)[: self.settings.top_k]


class ExtractEncoder:
    """Encode a question and its context together, once, and cut the context into windows."""

    def __init__(self, task: ExtractTask, tokenizer: Tokenizer, max_context_tokens: int) -> None:
        settings = task.settings
        before, behind = QUESTION_ANSWERING_PREFIX.split("{question}")
        self._num_layout_tokens = sum(map(len, tokenizer.encode_batch([before.rstrip(), behind])))
        smallest = max_context_tokens - self._num_layout_tokens - settings.max_question_tokens
        if smallest < 1:
            raise ConfigError(
                f"task.max_question_tokens: {settings.max_question_tokens} leave no room for a text in the model's "
                f"context of {max_context_tokens} (n_positions in config.json); lower it"
            )
        if settings.stride_tokens is not None and settings.stride_tokens >= smallest:
            raise ConfigError(
                f"task.stride_tokens: must be below {smallest}, the tokens of a window beside the longest question in "
                f"the model's context of {max_context_tokens} (n_positions in config.json), got "
                f"{settings.stride_tokens}"
            )
        self._task = task
        self._settings = settings
        self._tokenizer = tokenizer
        self._max_context_tokens = max_context_tokens

    def __call__(self, records: Sequence[Mapping[str, Any] | RecordError]) -> list[Encoded | RecordError]:
        """Return each record's tokens, with notes on its context, or why there are none."""
        prompts = [rendered(record, self._task.prompt) for record in records]
        return [prompt if isinstance(prompt, RecordError) else self._encoded(*prompt) for prompt in prompts]

    def _encoded(self, question: str, context: str) -> Encoded | RecordError:
        prefix_chars = len(QUESTION_ANSWERING_PREFIX.format(question=question))
        layout = QUESTION_ANSWERING_LAYOUT.format(question=question, context=context)
        token_ids, offsets = self._tokenizer.encode_with_offsets(layout)
        num_prefix = sum(end <= prefix_chars for _, end in offsets)
        num_question = num_prefix - self._num_layout_tokens
        if num_question > self._settings.max_question_tokens:
            return RecordError(
                f"the question has {num_question} tokens and max_question_tokens is "
                f"{self._settings.max_question_tokens}; shorten it, or raise max_question_tokens"
            )
        shift = len(layout) - len(context)
        chars = [_trimmed(context, start - shift, end - shift) for start, end in offsets[num_prefix:]]
        room = self._max_context_tokens - num_prefix
        overlap = self._settings.stride_tokens
        overlap = min(MAX_OVERLAP_TOKENS, room // 2) if overlap is None else overlap
        cut = windows(len(token_ids) - num_prefix, room, overlap)
        notes = {
            "context": context,
            "num_prefix": num_prefix,
            "starts": [start for start, _ in chars],
            "ends": [end for _, end in chars],
            "windows": [window._asdict() for window in cut],
        }
        return Encoded(token_ids=token_ids, notes=notes)


def _trimmed(context: str, start: int, end: int) -> tuple[int, int]:
    """Return a token's characters without white space at its ends; none, start == end, for white space alone."""
    text = context[max(start, 0) : end] if end > 0 else ""
    kept = text.strip()
    first = max(start, 0) + len(text) - len(text.lstrip())
    return (first, first + len(kept)) if kept else (first, first)
