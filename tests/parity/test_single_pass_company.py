"""Rows of one pass: labels, scores, embeddings, classes and spans do not depend on their company, to the last bit."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from gptj_batch.engine import Engine
from gptj_batch.engine.prepare import why_no_cpu_kernels
from gptj_batch.model_folder import DEMO, Head, resolve_folder
from gptj_batch.requests import AnyRequest, ClassifyRequest, EmbedRequest, LabelRequest, ScoreRequest, SpanRequest

REASON = why_no_cpu_kernels(torch.device("cpu"), torch.float32, 64)
LABELS = (((5,), (9,), (70,)), ((9,), (5,)), ((11, 12), (11, 13), (40,)))


def prompts() -> list[list[int]]:
    """Prompts of many lengths, some with beginnings in common, which are then computed once."""
    draw = random.Random(0)
    shared = [draw.randrange(300) for _ in range(70)]
    own = [[draw.randrange(300) for _ in range(draw.randrange(2, 90))] for _ in range(24)]
    return [(shared[: draw.randrange(20, 70)] if index % 2 else []) + tokens for index, tokens in enumerate(own)]


def by_language_model(index: int, tokens: list[int]) -> AnyRequest:
    key = str(index)
    if index % 4 == 0:
        return EmbedRequest(key=key, prompt_token_ids=tokens)
    if index % 4 == 1:
        return ScoreRequest(key=key, prompt_token_ids=tokens)
    labels = LABELS[index % len(LABELS)]
    return LabelRequest(key=key, prompt_token_ids=tokens, label_token_ids=labels, relative=index % 4 == 2)


def by_classifier(index: int, tokens: list[int]) -> AnyRequest:
    return ClassifyRequest(key=str(index), prompt_token_ids=tokens)


def by_span_head(index: int, tokens: list[int]) -> AnyRequest:
    return SpanRequest(key=str(index), prompt_token_ids=tokens, first_token=0)


@pytest.mark.skipif(REASON is not None, reason=f"no C++ kernels: {REASON}")
@pytest.mark.parametrize(
    ("head", "request_of"),
    [
        ("causal-lm", by_language_model),
        ("sequence-classification", by_classifier),
        ("question-answering", by_span_head),
    ],
)
def test_company_changes_no_bit(head: Head, request_of: Any) -> None:
    engine = Engine.from_pretrained(resolve_folder(DEMO, None, head), head=head, dtype="float32")
    requests = [request_of(index, tokens) for index, tokens in enumerate(prompts())]
    together = engine.run(requests)
    assert [results(engine, [request])[0] for request in requests] == list(map(repr, together))
    assert results(engine, requests[::-1])[::-1] == list(map(repr, together))
    parts = [requests[start : start + 5] for start in range(0, len(requests), 5)]
    assert [result for part in parts for result in results(engine, part)] == list(map(repr, together))


def results(engine: Engine, requests: Sequence[AnyRequest]) -> list[str]:
    return list(map(repr, engine.run(requests)))
