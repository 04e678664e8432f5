"""The oracle: a transformers GPT-J and ours, holding the same random weights."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import gptj_batch.model

SMALL = {"vocab_size": 97, "n_positions": 48, "n_embd": 128, "n_layer": 2, "n_head": 2, "rotary_dim": 16}
# What attention scores vary by. Much below 1 attention is uniform, and a wrong score cannot be seen.
SCORE_SPREAD = 1.5
TOLERANCE = 1e-5
LOSS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Pair:
    """Two models with the same weights: `theirs` wrote the folder that `ours` was read from."""

    ours: Any
    theirs: Any
    folder: Path


def random_oracle(class_name: str, **settings: Any) -> Any:
    """Return transformers' model with weights so large that every part of it matters, in eval mode."""
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(transformers.GPTJConfig(**{**SMALL, **settings}))
    # Projections of a normed token have variance n_embd * spread**2 per channel, and so do scores after scaling.
    spread = math.sqrt(SCORE_SPREAD / model.config.n_embd)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, spread)
            elif isinstance(module, nn.LayerNorm):
                module.weight.normal_(1.0, 0.2)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 1.0)
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(0.0, 0.2)
    return model.eval()


def differences(ours: Any, theirs: Any) -> dict[str, float]:
    """Return the largest difference of every field that either output has; infinite where one lacks it."""
    if isinstance(ours, tuple):
        return {str(place): _difference(*both) for place, both in enumerate(zip(ours, theirs, strict=True))}
    names = list(dict.fromkeys([*ours.keys(), *theirs.keys()]))
    return {name: _difference(getattr(ours, name, None), getattr(theirs, name, None)) for name in names}


def _difference(ours: Any, theirs: Any) -> float:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return float((ours - theirs).abs().max()) if ours.shape == theirs.shape else math.inf
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        return max(_difference(a, b) for a, b in zip(ours, theirs, strict=True))
    if hasattr(ours, "layers") and hasattr(theirs, "layers"):
        return _difference(_flat(ours), _flat(theirs))
    return math.inf


def _flat(cache: Any) -> tuple[Tensor, ...]:
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def token_batch(batch_size: int, num_tokens: int, padding: str = "none", vocab_size: int = 97) -> dict[str, Tensor]:
    """Return input_ids (B, S) and attention_mask; row i has i padding tokens on the side `padding`."""
    generator = torch.Generator().manual_seed(batch_size * 1000 + num_tokens)
    input_ids = torch.randint(1, vocab_size, (batch_size, num_tokens), generator=generator)
    mask = torch.ones_like(input_ids)
    for row in range(batch_size):
        if padding == "left":
            mask[row, :row] = 0
        elif padding == "right":
            mask[row, num_tokens - row :] = 0
    return {"input_ids": input_ids.masked_fill(mask == 0, 0), "attention_mask": mask}


class Oracle:
    """Makes pairs, inputs and comparisons; tests get it as the fixture `oracle`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pair(self, class_name: str, **settings: Any) -> Pair:
        """Make two models with the same weights, by way of a checkpoint on disk."""
        theirs = random_oracle(class_name, **settings)
        theirs.save_pretrained(self._folder)
        ours = getattr(gptj_batch.model, class_name).from_pretrained(self._folder)
        return Pair(ours, theirs, self._folder)

    def assert_equal(self, ours: Any, theirs: Any) -> None:
        """Compare every field that either output has; the fields that differ are shown with by how much."""
        found = differences(ours, theirs)
        allowed = {name: LOSS_TOLERANCE if name == "loss" else TOLERANCE for name in found}
        assert {name: value for name, value in found.items() if not value <= allowed[name]} == {}

    random = staticmethod(random_oracle)
    differences = staticmethod(differences)
    tokens = staticmethod(token_batch)


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Oracle]:
    # Models this small lose more to waiting threads than they gain.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Oracle(tmp_path / "checkpoint")
    torch.set_num_threads(num_threads)
