"""Random checkpoints whose attention matters, and both engines' answers to the same requests.

Tests that need vLLM run where it is installed: `make test-vllm` makes such an environment.
"""

import gc
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gptj_batch.backends import Backend, make_backend
from gptj_batch.backends.vllm_install import installed
from gptj_batch.model import (
    GPTJConfig,
    GPTJForCausalLM,
    GPTJForQuestionAnswering,
    GPTJForSequenceClassification,
)
from gptj_batch.requests import AnyRequest
from gptj_batch.results import AnyResult

_problem = installed().why_unusable()
needs_vllm = pytest.mark.skipif(_problem is not None, reason=str(_problem).split(";")[0])

VOCAB_SIZE, N_POSITIONS, END_OF_TEXT = 97, 96, 1
SCORE_SPREAD = 1.5
CLASSES = {
    "causal-lm": GPTJForCausalLM,
    "sequence-classification": GPTJForSequenceClassification,
    "question-answering": GPTJForQuestionAnswering,
}


def save_checkpoint(folder: Path, head: str = "causal-lm", head_size: int = 64, **settings: Any) -> Path:
    """Write a model of two layers and two heads."""
    torch.manual_seed(head_size)
    width = 2 * head_size
    config = GPTJConfig(
        vocab_size=VOCAB_SIZE,
        n_positions=N_POSITIONS,
        n_embd=width,
        n_layer=2,
        n_head=2,
        rotary_dim=16,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        **settings,
    )
    model = CLASSES[head](config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, math.sqrt(SCORE_SPREAD / width))
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 1.0)
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    return folder


@contextmanager
def running(kind: str, folder: Path, **settings: Any) -> Iterator[Backend]:
    """Run a backend in float32 on one thread; vLLM without compiling."""
    if kind == "vllm":
        settings["engine_kwargs"] = {"enforce_eager": True, **settings.get("engine_kwargs", {})}
    backend = make_backend(
        kind, model_path=folder, device="cpu", num_threads=1, **{"dtype": "float32", "kv_cache_gb": 0.02, **settings}
    )
    try:
        yield backend
    finally:
        backend.close()
        gc.collect()


def both(folder: Path, requests: Sequence[AnyRequest], **settings: Any) -> tuple[list[AnyResult], list[AnyResult]]:
    """Return the native engine's answers and vLLM's."""
    answers = []
    for kind in ("native", "vllm"):
        with running(kind, folder, **settings) as backend:
            answers.append(backend.run(requests))
    return answers[0], answers[1]


class Draw:
    """Prompts from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def tokens(self, count: int) -> list[int]:
        return [self._random.randrange(2, VOCAB_SIZE) for _ in range(count)]


def largest_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Return by how much any number differs; infinite where there are not as many."""
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        return math.inf
    pairs = [(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    return max(abs(a - b) for a, b in pairs)
