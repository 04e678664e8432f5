r"""The task `score`: how likely the model finds a text, alone or behind a context.

Adds `logprob_sum` (the summed log-probability of the text's tokens, in nats), `num_scored_tokens`, and `perplexity`,
exp(-logprob_sum / num_scored_tokens). Of a whole column it is exp(-sum of logprob_sum / sum of num_scored_tokens).

*The border.* Context and text are encoded each by itself, and the token ids joined, so that every token belongs to one
of them, and a text has the same tokens behind any context. A text that goes on with a word should begin with its space:
`context: "{{ question }}\nAnswer:"`, `text: " {{ answer }}"`.

*The first token.* Nothing predicts a text's first token where no context stands before it; as in transformers' loss it
is not scored, and `num_scored_tokens` is one less than the text has. With `score_first_token` it is scored behind
<|endoftext|>. A text of one token without context has nothing to score: its sum is 0, its perplexity null. A text
without tokens is the row's error.

*Long texts* are read in windows of the model's context, each `stride_tokens` further on than the one before, as in
transformers' "Perplexity of fixed-length models". Every token is scored once, by the first window that holds it, and so
behind everything before it, or behind at least n_positions - stride_tokens tokens.

*Long contexts.* The first window begins with the context, which must leave room for the text, or for `stride_tokens` of
it where the text is longer. One that does not is the row's error or, with `truncate: left`, loses its beginning.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field

from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.model_folder import Head
from gptj_batch.prompts.template import PromptTemplate
from gptj_batch.prompts.tokenizer import END_OF_TEXT, Tokenizer
from gptj_batch.requests import AnyRequest, ScoreRequest
from gptj_batch.results import AnyResult, Scored
from gptj_batch.tasks.base import Encoded, Settings, column
from gptj_batch.tasks.prompted import rendered


class ScoreSettings(Settings):
    """The block `task` of a job of kind `score`."""

    head: ClassVar[Head] = "causal-lm"
    kind: Literal["score"]
    text: str = Field(min_length=1)
    """Template over the record's columns: the text whose tokens are scored."""
    context: str | None = Field(default=None, min_length=1)
    """Template over the record's columns: what stands before the text and is not scored; null is nothing."""
    stride_tokens: int | None = Field(default=None, ge=1)
    """How much further on each window of a long text begins; null is half the model's context."""
    score_first_token: bool = False
    """Score a text's first token too where no context stands before it, behind <|endoftext|>."""
    truncate: Literal["left", "error"] = "error"
    """A context that leaves no room for the text: cut at its left end, or make it the row's error."""
    deduplicate: bool = False
    """Compute rows of the same text and context once."""


class ScoreTask:
    """See the module."""

    def __init__(self, settings: ScoreSettings) -> None:
        self.settings = settings
        self._text = PromptTemplate(settings.text, "task.text")
        self._context = None if settings.context is None else PromptTemplate(settings.context, "task.context")
        self.head: Head = settings.head

    @property
    def reads(self) -> frozenset[str]:
        """Return the columns of the text and the context."""
        return self._text.columns | (frozenset() if self._context is None else self._context.columns)

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError where a template uses a column that is not among `names`."""
        self._text.check_columns(names)
        if self._context is not None:
            self._context.check_columns(names)

    @property
    def adds(self) -> pa.Schema:
        """Return the columns that the task adds."""
        return pa.schema(
            [("logprob_sum", pa.float64()), ("num_scored_tokens", pa.int32()), ("perplexity", pa.float64())]
        )

    @property
    def raw_type(self) -> pa.DataType:
        """Return the packed form: the sum over all windows, and of how many tokens."""
        return pa.struct([("logprob_sum", pa.float64()), ("num_scored_tokens", pa.int32())])

    @property
    def notes_type(self) -> pa.DataType:
        """Return the windows that the tokens are read in."""
        return pa.list_(pa.struct([(name, pa.int32()) for name in ScoreWindow._fields]))

    def prompt(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Render the context, empty where there is none, and the text. Raises RecordError."""
        return "" if self._context is None else self._context.render(record), self._text.render(record)

    @property
    def deduplicate(self) -> bool:
        """Say whether rows of the same text and context are computed once."""
        return self.settings.deduplicate

    def encoder(self, tokenizer: Tokenizer, max_context_tokens: int) -> "ScoreEncoder":
        """Return the encoder of contexts and texts.

        Raises ConfigError for a stride or a first token that the model or its tokenizer rules out.
        """
        return ScoreEncoder(self, tokenizer, max_context_tokens)

    def request_maker(self, tokenizer: Tokenizer) -> "ScoreTask":
        """Return what makes requests: the task itself, since nothing needs the tokenizer."""
        return self

    def requests(self, key: str, prompt_token_ids: Sequence[int], notes: Any = None) -> list[AnyRequest]:
        """Return one request a window; none for a single token."""
        return [
            ScoreRequest(
                key=f"{key}#{number}",
                prompt_token_ids=prompt_token_ids[window["first"] : window["stop"]],
                first_token=window["first_scored"] - window["first"],
            )
            for number, window in enumerate(notes)
        ]

    def pack(self, results: Sequence[AnyResult]) -> dict[str, float | int]:
        """Return the sum over one row's windows."""
        logprobs = [logprob for result in results if isinstance(result, Scored) for logprob in result.token_logprobs]
        return {"logprob_sum": math.fsum(logprobs), "num_scored_tokens": len(logprobs)}

    def columns(self, raw: Sequence[Any], notes: Sequence[Any], tokenizer: Tokenizer) -> list[pa.Array]:
        """Return the added columns."""
        rows = [{} if row is None else row | {"perplexity": perplexity(**row)} for row in raw]
        return [column([row.get(field.name) for row in rows], field) for field in self.adds]


class ScoreEncoder:
    """Encode contexts and texts, and lay out the windows that they are read in."""

    def __init__(self, task: ScoreTask, tokenizer: Tokenizer, max_context_tokens: int) -> None:
        settings = task.settings
        stride = max(1, max_context_tokens // 2) if settings.stride_tokens is None else settings.stride_tokens
        if stride >= max_context_tokens:
            raise ConfigError(
                f"task.stride_tokens: must be below {max_context_tokens}, the model's context (n_positions in "
                f"config.json), so that each window begins with a token of the one before; got {stride}"
            )
        self._begin: list[int] = []  # what stands before a text without context
        if settings.score_first_token:
            end_of_text = tokenizer.token_id(END_OF_TEXT)
            if end_of_text is None:
                raise ConfigError(
                    f"task.score_first_token: the tokenizer has no {END_OF_TEXT} to put before a text; set it to false"
                )
            self._begin = [end_of_text]
        self._task = task
        self._tokenizer = tokenizer
        self._max_context_tokens = max_context_tokens
        self._stride = stride

    def __call__(self, records: Sequence[Mapping[str, Any] | RecordError]) -> list[Encoded | RecordError]:
        """Return each record's tokens, those of the context first, with its windows; or why there are none."""
        prompts = [rendered(record, self._task.prompt) for record in records]
        texts = [text for prompt in prompts if not isinstance(prompt, RecordError) for text in prompt]
        ids = iter(self._tokenizer.encode_batch(texts))
        return [
            prompt if isinstance(prompt, RecordError) else self._joined(context=next(ids), text=next(ids))
            for prompt in prompts
        ]

    def _joined(self, context: list[int], text: list[int]) -> Encoded | RecordError:
        """Join a context's and a text's token ids."""
        if not text:
            return RecordError("the rendered text is empty: there is no token to score")
        context = context or self._begin
        room = self._max_context_tokens - min(len(text), self._stride)
        num_dropped = max(0, len(context) - room)
        if num_dropped and self._task.settings.truncate == "error":
            return RecordError(
                f"the context has {len(context)} tokens and {room} fit before the text; set truncate to left, lower "
                "stride_tokens, or shorten the context"
            )
        joined = context[num_dropped:] + text
        windows = score_windows(len(joined), len(joined) - len(text), self._max_context_tokens, self._stride)
        return Encoded(token_ids=joined, num_dropped_tokens=num_dropped, notes=[window._asdict() for window in windows])


class ScoreWindow(NamedTuple):
    """A range of tokens that is read at once, and from which on they are scored in it."""

    first: int
    stop: int
    first_scored: int


def score_windows(num_tokens: int, num_context: int, room_tokens: int, stride_tokens: int) -> list[ScoreWindow]:
    """Cut tokens into windows of at most `room_tokens`, so that all behind the context but a first one are scored once.

    The context leaves room for `stride_tokens` in the first window, or for all the text.
    """
    assert 1 <= stride_tokens < room_tokens, "the settings were checked against the model's context"
    found: list[ScoreWindow] = []
    first, first_scored = 0, max(1, num_context)
    while first_scored < num_tokens:
        stop = min(first + room_tokens, num_tokens)
        found.append(ScoreWindow(first, stop, first_scored))
        first, first_scored = first + stride_tokens, stop
    return found


def perplexity(logprob_sum: float, num_scored_tokens: int) -> float | None:
    """Return exp(-logprob_sum / num_scored_tokens): null of no tokens, infinite where no double holds it."""
    if num_scored_tokens == 0:
        return None
    try:
        return math.exp(-logprob_sum / num_scored_tokens)
    except OverflowError:
        return math.inf
