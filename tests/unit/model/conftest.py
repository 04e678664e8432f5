"""A GPT-J small enough for a unit test."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gptj_batch.model import GPTJConfig

TINY: dict[str, Any] = {"vocab_size": 31, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    # Models this small lose more to waiting threads than they gain.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def tiny() -> dict[str, Any]:
    return dict(TINY)


@pytest.fixture
def config(tiny: dict[str, Any]) -> GPTJConfig:
    # Weights spread widely, so that no part of the model is lost in another.
    return GPTJConfig(**tiny, initializer_range=0.4)
