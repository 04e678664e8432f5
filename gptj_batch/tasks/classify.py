"""The task `classify` by prompt: one of a list of labels, by the likelihood that the model gives each behind a prompt.

Adds `label`, `label_score` (its probability) and `label_scores` (every label's probability, in the order of `labels`).
The probabilities are normalised over the labels: p(label) = exp(l_label) / sum over labels of exp(l), where l is the
log-likelihood of the label's text given the prompt, summed over its tokens or, with `likelihood: mean`, averaged.
Nothing is generated and nothing matched. With `calibrate: content_free` they are divided by what the model gives the
labels when the prompt asks about nothing (see `gptj_batch.tasks.calibration`), and normalised again; that is measured
once a replica, before its first row. With `abstain_below`, `label` is null where the best probability is below it;
`label_score` and `label_scores` still say what was found.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field, field_validator

from gptj_batch.errors import BackendError, ConfigError
from gptj_batch.model_folder import Head
from gptj_batch.prompts.template import PromptTemplate
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import TruncationSide
from gptj_batch.requests import AnyRequest, LabelRequest
from gptj_batch.results import AnyResult, Failed, Labelled
from gptj_batch.tasks.base import Settings, column
from gptj_batch.tasks.calibration import Calibration, content_free_prompts, log_mean_probabilities
from gptj_batch.tasks.prompted import PromptEncoder

Likelihood = Literal["sum", "mean"]


class ClassifySettings(Settings):
    """The block `task` of a job of kind `classify`, unless its method is `head`."""

    head: ClassVar[Head] = "causal-lm"
    kind: Literal["classify"]
    method: Literal["prompt"] = "prompt"
    """`prompt`: by the likelihood of each label's text; `head`, a trained classifier, has its own settings."""
    prompt: str = Field(min_length=1)
    """Template over the record's columns, e.g. "{{ text }}\\nTopic:"."""
    labels: dict[str, str] | tuple[str, ...] = Field(min_length=2)
    """The labels, or a map from each label to the text that is scored in its stead.

    A label of a list is scored with a space before it where the prompt does not end in white space, as words follow
    words in text; the texts of a map are taken as they are.
    """
    likelihood: Likelihood = "sum"
    """`sum`: a label's tokens together. `mean`: per token, which takes from short labels their advantage."""
    calibrate: Calibration = "none"
    """`content_free`: take from each label what the prompt favours it by when it asks about nothing."""
    abstain_below: float | None = Field(default=None, ge=0.0, le=1.0)
    """Where no label's probability is at least this, `label` is null; null always gives a label."""
    top_k: int | None = Field(default=None, ge=1)
    """Keep only so many of the likeliest labels in `label_scores`, likeliest first; null keeps all in their order."""
    truncate: TruncationSide = "error"
    """A prompt that does not fit: cut the record's text at its left or right end, or make it the row's error."""
    deduplicate: bool = False
    """Compute rows that have the same prompt once, within what a replica remembers."""

    @field_validator("labels", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: dict[str, str] | tuple[str, ...]) -> dict[str, str] | tuple[str, ...]:
        texts = list(value.values()) if isinstance(value, dict) else list(value)
        if "" in texts or "" in value:
            raise ValueError("a label and its text must not be empty")
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            raise ValueError(f"two labels have the same text {twice[0]!r}; the model cannot tell them apart")
        return value


class ClassifyTask:
    """See the module.

    favour: how much more likely the prompt makes each label by itself, in log-likelihood; none where nothing is known
    """

    def __init__(self, settings: ClassifySettings, favour: Sequence[float] = ()) -> None:
        self.settings = settings
        self._favour = tuple(favour)
        self._template = PromptTemplate(settings.prompt, "task.prompt")
        self.head: Head = settings.head
        self.reads = self._template.columns
        self.notes_type = pa.null()  # the encoding of a prompt leaves nothing to remember

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels, in the order given."""
        return tuple(self.settings.labels)

    @property
    def label_texts(self) -> tuple[str, ...]:
        """Return the text that is scored for each label."""
        labels = self.settings.labels
        if isinstance(labels, dict):
            return tuple(labels.values())
        space = "" if self.settings.prompt[-1:].isspace() else " "
        return tuple(space + label for label in labels)

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError where the prompt uses a column that is not among `names`."""
        self._template.check_columns(names)

    @property
    def adds(self) -> pa.Schema:
        """Return the columns that the task adds."""
        return pa.schema([pa.field("label", pa.string()), *SCORE_FIELDS])

    @property
    def raw_type(self) -> pa.DataType:
        """Return the packed form: the log-likelihood of each label, or all of them off by the same number.

        What the prompt favours a label by is already taken off.
        """
        return pa.list_(pa.float64())

    @property
    def deduplicate(self) -> bool:
        """Say whether rows with the same prompt are computed once."""
        return self.settings.deduplicate

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Render the prompt. Raises RecordError."""
        return self._template.render(record)

    def encoder(self, tokenizer: Tokenizer, max_context_tokens: int) -> PromptEncoder:
        """Return the encoder of prompts. Raises ConfigError where what stands behind them leaves no room."""
        reserved = self.request_maker(tokenizer).reserved_tokens
        encoder = PromptEncoder(self._template, self.settings.truncate, tokenizer, max_context_tokens, reserved)
        longest = max((len(request.prompt_token_ids) for request in self.baseline_requests(tokenizer)), default=0)
        if longest + reserved > max_context_tokens:
            room = max_context_tokens - reserved
            raise ConfigError(
                f"task.calibrate: a prompt without content has {longest} tokens and {room} fit (n_positions in "
                "config.json less the longest label); shorten task.prompt, or set it to none"
            )
        return encoder

    def request_maker(self, tokenizer: Tokenizer) -> "ClassifyRequestMaker":
        """Return the maker of requests. Raises ConfigError where a label has no tokens, or two the same."""
        return ClassifyRequestMaker(self.labels, self.label_texts, tokenizer, self.settings.likelihood)

    def baseline_requests(self, tokenizer: Tokenizer) -> list[AnyRequest]:
        """Return the prompts that ask about nothing, where these calibrate. Raises ConfigError where there are none."""
        if self.settings.calibrate == "none":
            return []
        maker = self.request_maker(tokenizer)
        prompts = content_free_prompts(self._template, tokenizer)
        return [
            request for number, ids in enumerate(prompts) for request in maker.requests(f"content_free#{number}", ids)
        ]

    def with_baseline(self, results: Sequence[AnyResult], tokenizer: Tokenizer) -> "ClassifyTask":
        """Return the task that takes off what the prompt favours each label by. Raises BackendError."""
        failed = next((result.error for result in results if isinstance(result, Failed)), None)
        if failed is not None:
            raise BackendError(f"task.calibrate: a prompt without content failed: {failed}; set it to none")
        lengths = self._divisors(tokenizer)
        rows = [
            [logprob / length for logprob, length in zip(result.label_logprobs, lengths, strict=True)]
            for result in results
            if isinstance(result, Labelled)
        ]
        favour = [log * length for log, length in zip(log_mean_probabilities(rows), lengths, strict=True)]
        return ClassifyTask(self.settings, favour)

    def pack(self, results: Sequence[AnyResult]) -> list[float]:
        """Return one row's label log-likelihoods, less what the prompt favours each label by."""
        (result,) = results
        assert isinstance(result, Labelled)
        if not self._favour:
            return list(result.label_logprobs)
        return [logprob - favour for logprob, favour in zip(result.label_logprobs, self._favour, strict=True)]

    def _divisors(self, tokenizer: Tokenizer) -> list[int]:
        """Return what each label's log-likelihood is divided by: the number of its tokens, or 1."""
        if self.settings.likelihood == "sum":
            return [1] * len(self.labels)
        return [len(ids) for ids in tokenizer.encode_batch(list(self.label_texts))]

    def _labelling(self, scores: Sequence[float]) -> "Labelling":
        row = likeliest(self.labels, scores)
        threshold = self.settings.abstain_below
        if threshold is not None and max(scores) < threshold:
            row = row._replace(label=None)
        return row.cut(self.settings.top_k)

    def columns(self, raw: Sequence[Any], notes: Sequence[Any], tokenizer: Tokenizer) -> list[pa.Array]:
        """Return the added columns."""
        lengths = self._divisors(tokenizer)
        rows = [None if row is None else self._labelling(probabilities(row, lengths)) for row in raw]
        return label_columns(rows, self.adds)


class ClassifyRequestMaker:
    """Turns token ids into one request that scores every label.

    The probabilities over labels depend on differences only, which spares the engine a normaliser; not so where each
    likelihood is divided by another number of tokens.
    """

    def __init__(
        self, labels: Sequence[str], texts: Sequence[str], tokenizer: Tokenizer, likelihood: Likelihood
    ) -> None:
        self._label_token_ids = tuple(tuple(ids) for ids in tokenizer.encode_batch(list(texts)))
        seen: dict[tuple[int, ...], str] = {}
        for label, ids in zip(labels, self._label_token_ids, strict=True):
            if not ids:
                raise ConfigError(f"task.labels: the text of {label!r} has no tokens; change it")
            if ids in seen:
                raise ConfigError(f"task.labels: {seen[ids]!r} and {label!r} become the same tokens; change one's text")
            seen[ids] = label
        self._relative = likelihood == "sum" or len(set(map(len, self._label_token_ids))) == 1

    @property
    def reserved_tokens(self) -> int:
        """Return the number of tokens of the longest label."""
        return max(len(ids) for ids in self._label_token_ids)

    def requests(self, key: str, prompt_token_ids: Sequence[int], notes: Any = None) -> list[AnyRequest]:
        """Return the row's one request."""
        return [
            LabelRequest(
                key=key,
                prompt_token_ids=prompt_token_ids,
                label_token_ids=self._label_token_ids,
                relative=self._relative,
            )
        ]


SCORE_FIELDS = (
    pa.field("label_score", pa.float64()),
    pa.field("label_scores", pa.map_(pa.string(), pa.float64())),
)


class Labelling(NamedTuple):
    """What one row's label columns hold."""

    label: str | list[str] | None
    label_score: float | None
    label_scores: list[tuple[str, float]]

    def cut(self, top_k: int | None) -> "Labelling":
        """Return it with the `top_k` likeliest labels alone, likeliest first; None keeps all in their order."""
        return self if top_k is None else self._replace(label_scores=likeliest_first(self.label_scores)[:top_k])


def likeliest(labels: Sequence[str], scores: Sequence[float]) -> Labelling:
    """Return the label of the highest score, the first of equal ones, with every label's score in their order."""
    best = max(range(len(scores)), key=scores.__getitem__)
    return Labelling(labels[best], scores[best], list(zip(labels, scores, strict=True)))


def likeliest_first(scores: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return labels and their scores in falling order; equal ones stay in theirs."""
    return sorted(scores, key=lambda item: item[1], reverse=True)


def label_columns(rows: Sequence[Labelling | None], schema: pa.Schema) -> list[pa.Array]:
    """Return the columns `label`, `label_score` and `label_scores`; None gives nulls."""
    return [column([None if row is None else getattr(row, field.name) for row in rows], field) for field in schema]


def probabilities(logprobs: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """Return the softmax over labels of log-likelihood / length."""
    scores = [logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]
