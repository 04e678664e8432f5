"""The task `classify` by head: the labels of a trained classifier (`GPTJForSequenceClassification`).

What it was trained for, and its labels' names, stand in the checkpoint's config.json (`problem_type`, `id2label`):

single_label_classification   softmax over the logits; adds `label`, `label_score`, `label_scores`, as by prompt
multi_label_classification    sigmoid of each logit; `label` is the list of those of at least `multi_label_threshold`,
                              likeliest first, `label_score` the highest probability among them, null if there is none
regression                    adds the logit as `value` and nothing else

A checkpoint that does not say what it was trained for is one of single labels, or with one label a regression.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from gptj_batch.errors import CheckpointError
from gptj_batch.model_folder import Head, ProblemType
from gptj_batch.prompts.template import PromptTemplate
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import TruncationSide
from gptj_batch.requests import AnyRequest, ClassifyRequest
from gptj_batch.results import AnyResult, Classified
from gptj_batch.tasks.base import Settings, column
from gptj_batch.tasks.classify import (
    SCORE_FIELDS,
    Labelling,
    label_columns,
    likeliest,
    likeliest_first,
    probabilities,
)
from gptj_batch.tasks.prompted import PromptEncoder


class ClassifyHeadSettings(Settings):
    """The block `task` of a job of kind `classify` with method `head`."""

    head: ClassVar[Head] = "sequence-classification"
    kind: Literal["classify"]
    method: Literal["head"]
    """`head`: a trained classifier."""
    text: str = Field(min_length=1)
    """Template over the record's columns: what the classifier reads, laid out as it was trained."""
    multi_label_threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """Of a classifier of several labels at once: a label is chosen from this probability on."""
    top_k: int | None = Field(default=None, ge=1)
    """Keep only so many of the likeliest labels in `label_scores`, likeliest first; null keeps all in their order."""
    truncate: TruncationSide = "error"
    """A text that does not fit: cut the record's text at its left or right end, or make it the row's error."""
    deduplicate: bool = False
    """Compute rows that have the same text once, within what a replica remembers."""


class ClassifyHeadTask:
    """See the module; `labels` and `problem` are the checkpoint's. Raises CheckpointError for labels of no use."""

    def __init__(self, settings: ClassifyHeadSettings, labels: Sequence[str], problem: ProblemType) -> None:
        if problem == "regression" and len(labels) != 1:
            raise CheckpointError(
                f"model.path: the checkpoint is a regression of {len(labels)} values (id2label in config.json); "
                "classify gives one"
            )
        if len(set(labels)) < len(labels):
            raise CheckpointError("model.path: two labels have the same name (id2label in config.json); rename one")
        self.settings = settings
        self.labels = tuple(labels)
        self.problem = problem
        self._template = PromptTemplate(settings.text, "task.text")
        self.head: Head = settings.head
        self.reads = self._template.columns
        self.notes_type = pa.null()  # the encoding of a text leaves nothing to remember

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError where the text uses a column that is not among `names`."""
        self._template.check_columns(names)

    @property
    def adds(self) -> pa.Schema:
        """Return the columns that the task adds."""
        if self.problem == "regression":
            return pa.schema([pa.field("value", pa.float64())])
        several = self.problem == "multi_label_classification"
        return pa.schema([pa.field("label", pa.list_(pa.string()) if several else pa.string()), *SCORE_FIELDS])

    @property
    def raw_type(self) -> pa.DataType:
        """Return the packed form: the logit of each label."""
        return pa.list_(pa.float64())

    @property
    def deduplicate(self) -> bool:
        """Say whether rows with the same text are computed once."""
        return self.settings.deduplicate

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Render the text. Raises RecordError."""
        return self._template.render(record)

    def encoder(self, tokenizer: Tokenizer, max_context_tokens: int) -> PromptEncoder:
        """Return the encoder of texts."""
        return PromptEncoder(self._template, self.settings.truncate, tokenizer, max_context_tokens)

    def request_maker(self, tokenizer: Tokenizer) -> "ClassifyHeadTask":
        """Return what makes requests: the task itself, since nothing needs the tokenizer."""
        return self

    def requests(self, key: str, prompt_token_ids: Sequence[int], notes: Any = None) -> list[AnyRequest]:
        """Return the row's one request."""
        return [ClassifyRequest(key=key, prompt_token_ids=prompt_token_ids)]

    def pack(self, results: Sequence[AnyResult]) -> list[float]:
        """Return one row's logits."""
        (result,) = results
        assert isinstance(result, Classified)
        return list(result.logits)

    def columns(self, raw: Sequence[Any], notes: Sequence[Any], tokenizer: Tokenizer) -> list[pa.Array]:
        """Return the added columns."""
        if self.problem == "regression":
            return [column([None if logits is None else logits[0] for logits in raw], self.adds.field("value"))]
        rows = [None if logits is None else self._labelling(logits) for logits in raw]
        return label_columns(rows, self.adds)

    def _labelling(self, logits: Sequence[float]) -> Labelling:
        if self.problem == "multi_label_classification":
            row = above(self.labels, [sigmoid(logit) for logit in logits], self.settings.multi_label_threshold)
        else:
            row = likeliest(self.labels, probabilities(logits, [1] * len(logits)))
        return row.cut(self.settings.top_k)


def above(labels: Sequence[str], scores: Sequence[float], threshold: float) -> Labelling:
    """Return the labels of at least the threshold, likeliest first."""
    of_labels = list(zip(labels, scores, strict=True))
    chosen = [(label, score) for label, score in likeliest_first(of_labels) if score >= threshold]
    return Labelling([label for label, _ in chosen], chosen[0][1] if chosen else None, of_labels)


def sigmoid(logit: float) -> float:
    """Return 1 / (1 + e^-logit), of any logit."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
