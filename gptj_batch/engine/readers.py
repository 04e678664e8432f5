"""Readers: what each head makes of the hidden states that a row needs, and of that the row's result.

Shape letters: see gptj_batch.engine. Here S is the tokens that are read, row after row.
"""

from array import array
from collections.abc import Sequence as Ordered
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from gptj_batch.engine.body import Body
from gptj_batch.engine.row import Row
from gptj_batch.engine.row_products import row_products
from gptj_batch.engine.token_logprobs import row_logprobs
from gptj_batch.model import GPTJForCausalLM, GPTJForQuestionAnswering, GPTJForSequenceClassification, HeadModel
from gptj_batch.requests import EmbedRequest, LabelRequest
from gptj_batch.results import Classified, Embedded, Failed, HeadResult, Labelled, Scored, SpanLogits


class Reader(Protocol):
    """Reads the rows' results from hidden states."""

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return a result per row.

        hidden: (S, E), of each row's last `num_read` tokens
        """
        ...


def make_reader(model: HeadModel, body: Body) -> Reader:
    """Return the reader of a model's head, and of the embeddings that any model gives."""
    if isinstance(model, GPTJForSequenceClassification):
        return MixedReader(ClassReader(model))
    if isinstance(model, GPTJForQuestionAnswering):
        return MixedReader(SpanReader(model))
    return MixedReader(LikelihoodReader(body)) if isinstance(model, GPTJForCausalLM) else EmbeddingReader()


class MixedReader:
    """Answer what a model with a head is asked: embeddings without the head, all else by it."""

    def __init__(self, head: Reader) -> None:
        self._head = head
        self._embeddings = EmbeddingReader()

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return a result per row, whichever kinds are mixed; see `Reader`."""
        parts = hidden.split([row.num_read for row in rows])
        answers: dict[int, HeadResult | Failed] = {}
        for reader, is_embedding in ((self._embeddings, True), (self._head, False)):
            places = [place for place, row in enumerate(rows) if isinstance(row.request, EmbedRequest) is is_embedding]
            if places:
                of_kind = hidden if len(places) == len(rows) else torch.cat([parts[place] for place in places])
                answers |= zip(places, reader(of_kind, [rows[place] for place in places]), strict=True)
        return [answers[place] for place in range(len(rows))]


class LikelihoodReader:
    """Sum the log-probabilities of every label's tokens, or give those of a text's one by one."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return a `Labelled` or `Scored` per row; see `Reader`."""
        logprobs = row_logprobs(self._body, hidden, rows)
        return [_likelihoods(row, of_row) for row, of_row in zip(rows, logprobs, strict=True)]


class EmbeddingReader:
    """Pool hidden states into a vector, in float32."""

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return an `Embedded` per row; see `Reader`."""
        parts = hidden.float().split([row.num_read for row in rows])
        vectors = torch.stack([part.mean(0) for part in parts])
        lengths = torch.linalg.vector_norm(vectors, dim=-1)
        wanted = torch.tensor([_is_normalized(row) for row in rows], device=vectors.device)
        scaled = torch.where((wanted & (lengths > 0))[:, None], vectors / lengths[:, None], vectors).cpu()
        return [_embedded(row, vector) for row, vector in zip(rows, scaled, strict=True)]


class ClassReader:
    """Apply the classification head, in float32 whatever the model computes in: it costs next to nothing."""

    def __init__(self, model: GPTJForSequenceClassification) -> None:
        self._model = model

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return a `Classified` per row; see `Reader`."""
        logits = row_products(hidden, self._model.score.weight).tolist()
        return [_classified(row, of_row) for row, of_row in zip(rows, logits, strict=True)]


class SpanReader:
    """Apply the question-answering head, in float32 as well."""

    def __init__(self, model: GPTJForQuestionAnswering) -> None:
        self._model = model

    def __call__(self, hidden: Tensor, rows: list[Row]) -> list[HeadResult | Failed]:
        """Return a `SpanLogits` per row; see `Reader`."""
        head = self._model.qa_outputs
        logits = row_products(hidden, head.weight, head.bias)
        of_rows = logits.split([row.num_read for row in rows])
        return [_span_logits(row, *of_row.T.tolist()) for row, of_row in zip(rows, of_rows, strict=True)]


def _likelihoods(row: Row, logprobs: list[float]) -> Labelled | Scored | Failed:
    if not _are_finite(logprobs):
        return _not_finite(row, "scores for the labels" if isinstance(row.request, LabelRequest) else "log-likelihoods")
    if isinstance(row.request, LabelRequest):
        return Labelled(key=row.request.key, label_logprobs=tuple(logprobs), num_prompt_tokens=row.num_prompt_tokens)
    return Scored(key=row.request.key, token_logprobs=tuple(logprobs), num_prompt_tokens=row.num_prompt_tokens)


def _is_normalized(row: Row) -> bool:
    return isinstance(row.request, EmbedRequest) and row.request.normalize


def _embedded(row: Row, vector: Tensor) -> Embedded | Failed:
    """vector: (E,), float32, on the CPU."""
    if not vector.isfinite().all():
        return _not_finite(row, "hidden states")
    packed = array("f", vector.numpy().tobytes())
    return Embedded(key=row.request.key, vector=packed, num_prompt_tokens=row.num_prompt_tokens)


def _classified(row: Row, logits: list[float]) -> Classified | Failed:
    if not _are_finite(logits):
        return _not_finite(row, "logits")
    return Classified(key=row.request.key, logits=tuple(logits), num_prompt_tokens=row.num_prompt_tokens)


def _span_logits(row: Row, starts: list[float], ends: list[float]) -> SpanLogits | Failed:
    if not _are_finite(list(chain(starts, ends))):
        return _not_finite(row, "logits")
    return SpanLogits(
        key=row.request.key,
        start_logits=tuple(starts),
        end_logits=tuple(ends),
        num_prompt_tokens=row.num_prompt_tokens,
    )


def _are_finite(values: Ordered[float]) -> bool:
    return all(-torch.inf < value < torch.inf for value in values)


def _not_finite(row: Row, what: str) -> Failed:
    return Failed(key=row.request.key, error=f"the model's {what} are not finite; try a wider dtype (float32)")
