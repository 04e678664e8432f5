"""Readers: what each head makes of the hidden states that a row needs, and of that the row's result.

Shape letters: see gptj_batch.engine. Here S is the tokens that are read, row after row.
"""

from collections.abc import Sequence as Ordered
from itertools import chain
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gptj_batch.engine.body import Body
from gptj_batch.engine.row import Row
from gptj_batch.model import GPTJForQuestionAnswering, GPTJForSequenceClassification, HeadModel
from gptj_batch.results import Classified, Failed, HeadResult, Labelled, SpanLogits

# Logits over the vocabulary are made and reduced so many rows at a time: 128 x 50,400 in float32 are 26 MB.
MAX_LOGIT_ROWS = 128


class Reader(Protocol):
    """Reads the rows' results from hidden states."""

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return a result per row.

        hidden: (S, E), of each row's last `num_read` tokens
        """
        ...


def make_reader(model: HeadModel, body: Body) -> Reader:
    """Return the reader of a model's head."""
    if isinstance(model, GPTJForSequenceClassification):
        return ClassReader(model)
    if isinstance(model, GPTJForQuestionAnswering):
        return SpanReader(model)
    return LabelReader(body)


class LabelReader:
    """Sum the log-probabilities of every label's tokens."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return a `Labelled` per row; see `Reader`."""
        targets: list[tuple[int, int]] = []  # (index into hidden, token), label after label
        first_node = 0
        for row in rows:
            targets += [(first_node + node, token) for label in row.tree.targets for node, token in label]
            first_node += row.num_read
        following = iter(self._token_logprobs(hidden, targets))
        scores = [[sum(next(following) for _ in label) for label in row.tree.targets] for row in rows]
        return [_labelled(row, of_row) for row, of_row in zip(rows, scores, strict=True)]

    def _token_logprobs(self, hidden: Tensor, targets: list[tuple[int, int]]) -> list[float]:
        """Return the log-probability of every target, log-softmax in float32 over the whole vocabulary.

        hidden: (S, E)
        """
        nodes, tokens = torch.tensor(targets, device=hidden.device).unbind(-1)
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for first in range(0, len(hidden), MAX_LOGIT_ROWS):
            logits = self._body.project(hidden[first : first + MAX_LOGIT_ROWS]).float()
            here = ((nodes >= first) & (nodes < first + MAX_LOGIT_ROWS)).nonzero()[:, 0]
            local = nodes[here] - first
            logprobs[here] = logits[local, tokens[here]] - logits.logsumexp(-1)[local]
        on_host: list[float] = logprobs.tolist()
        return on_host


class ClassReader:
    """Apply the classification head, in float32 whatever the model computes in: it costs next to nothing."""

    def __init__(self, model: GPTJForSequenceClassification) -> None:
        self._model = model

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return a `Classified` per row; see `Reader`."""
        logits = F.linear(hidden.float(), self._model.score.weight.float()).tolist()
        return [_classified(row, of_row) for row, of_row in zip(rows, logits, strict=True)]


class SpanReader:
    """Apply the question-answering head, in float32 as well."""

    def __init__(self, model: GPTJForQuestionAnswering) -> None:
        self._model = model

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return a `SpanLogits` per row; see `Reader`."""
        head = self._model.qa_outputs
        logits = F.linear(hidden.float(), head.weight.float(), head.bias.float())
        of_rows = logits.split([row.num_read for row in rows])
        return [_span_logits(row, *of_row.T.tolist()) for row, of_row in zip(rows, of_rows, strict=True)]


def _labelled(row: Row, scores: list[float]) -> Labelled | Failed:
    if not _are_finite(scores):
        return _not_finite(row, "scores for the labels")
    return Labelled(key=row.request.key, label_logprobs=tuple(scores), num_prompt_tokens=len(row.context))


def _classified(row: Row, logits: list[float]) -> Classified | Failed:
    if not _are_finite(logits):
        return _not_finite(row, "logits")
    return Classified(key=row.request.key, logits=tuple(logits), num_prompt_tokens=len(row.context))


def _span_logits(row: Row, starts: list[float], ends: list[float]) -> SpanLogits | Failed:
    if not _are_finite(list(chain(starts, ends))):
        return _not_finite(row, "logits")
    return SpanLogits(
        key=row.request.key,
        start_logits=tuple(starts),
        end_logits=tuple(ends),
        num_prompt_tokens=len(row.context),
    )


def _are_finite(values: Ordered[float]) -> bool:
    return all(-torch.inf < value < torch.inf for value in values)


def _not_finite(row: Row, what: str) -> Failed:
    return Failed(key=row.request.key, error=f"the model's {what} are not finite; try a wider dtype (float32)")
