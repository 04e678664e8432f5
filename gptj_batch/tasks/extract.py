r"""The task `extract` by head: the span of a context that answers a question (`GPTJForQuestionAnswering`).

The model reads "Question: {question}\nContext: {context}", the question first, because attention is causal: a token of
the context can then look back at it. The null position, where "there is no answer" is scored, is the last token before
the context, the colon. A context that does not fit is read in windows, each behind the whole question, that overlap by
`stride_tokens`. `gptj_batch.tasks.spans` has the scores.

`scoring: global_softmax` (the default) compares all spans of all windows: one softmax, and the `top_k` answers do not
overlap. `scoring: pipeline` scores as transformers' question-answering pipeline did
(`gptj_batch.tasks.pipeline_spans`); with it, what is not set is as there: 15 tokens an answer, windows of 384, answers
aligned to words.

Adds the columns of `gptj_batch.tasks.answers`, the likeliest answer first; `answer_score` is its probability. With
`allow_no_answer`, "no answer" is one of the answers, at the place that its probability gives it; probabilities are the
same with and without.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from gptj_batch.errors import RecordError
from gptj_batch.model_folder import Head
from gptj_batch.prompts.template import PromptTemplate
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import AnyRequest, SpanRequest
from gptj_batch.results import AnyResult, SpanLogits
from gptj_batch.tasks.answers import ANSWER_SCHEMA, EMPTY_CONTEXT, Answer, answer_columns, no_answer, span_answer
from gptj_batch.tasks.base import Settings
from gptj_batch.tasks.extract_windows import ExtractEncoder
from gptj_batch.tasks.pipeline_spans import PipelineScores
from gptj_batch.tasks.spans import SpanScores, Window

PIPELINE_DEFAULTS: Final = {"max_answer_tokens": 15, "window_tokens": 384, "align_to_words": True}


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
    scoring: Literal["global_softmax", "pipeline"] = "global_softmax"
    """`pipeline`: the scores, and unless they are set the sizes, of transformers' question-answering pipeline."""
    window_tokens: int | None = Field(default=None, ge=1)
    """The most tokens of a window, the question's included; null, or more than it has, is the model's context."""
    align_to_words: bool = False
    """Extend an answer to whole words as the tokenizer knows them; does harm where words stand without spaces."""
    deduplicate: bool = False
    """Compute rows of the same question and context once, within what a replica remembers."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_pipeline(cls, values: Any) -> Any:
        """Fill in the pipeline's own defaults, so that a job that is written out says what it did."""
        is_pipeline = isinstance(values, dict) and values.get("scoring") == "pipeline"
        return {**PIPELINE_DEFAULTS, **values} if is_pipeline else values


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
        return ANSWER_SCHEMA

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

    @property
    def deduplicate(self) -> bool:
        """Say whether rows of the same question and context are computed once."""
        return self.settings.deduplicate

    def prompt(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Render the question and the context. Raises RecordError."""
        question, context = self._question.render(record), self._context.render(record)
        if not question.strip():
            raise RecordError("the question is empty")
        if not context.strip() and not self.settings.allow_no_answer:
            raise RecordError(EMPTY_CONTEXT)
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
        return answer_columns(
            [None if row is None else self._answers(row, note) for row, note in zip(raw, notes, strict=True)]
        )

    def _answers(self, raw: Sequence[Any], notes: Mapping[str, Any]) -> list[Answer]:
        """Return the likeliest answers; of equal ones, a text goes before none."""
        settings, logits = self.settings, [(window["starts"], window["ends"]) for window in raw]
        of_windows = [Window(window["first"], window["stop"]) for window in notes["windows"]]
        scored = (of_windows, logits, notes["starts"], notes["ends"], settings.max_answer_tokens)
        if settings.scoring == "pipeline":
            by_window = PipelineScores(*scored)
            # Some of the best become one with others once they are aligned, hence more of them.
            num_candidates = 2 * settings.top_k + 10 if settings.align_to_words else settings.top_k
            answers, null = by_window.best(notes["context"], settings.top_k, num_candidates), by_window.null_score
        else:
            by_softmax = SpanScores(*scored)
            answers, null = self._without_overlaps(by_softmax, notes), by_softmax.null_probability
        if settings.allow_no_answer:
            answers.append(no_answer(null))
        return sorted(answers, key=lambda answer: answer["score"], reverse=True)[: settings.top_k]

    def _without_overlaps(self, scores: SpanScores, notes: Mapping[str, Any]) -> list[Answer]:
        context, starts, ends = notes["context"], notes["starts"], notes["ends"]
        spans = scores.best(self.settings.top_k)
        found = [span_answer(context, starts[span.first], ends[span.last], span.probability) for span in spans]
        return [answer for answer in found if answer is not None]
