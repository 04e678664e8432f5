"""The checkpoints that parity is measured on: the demo model's, and random ones in which every weight matters."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import nn

from gptj_batch.demo import DemoHead, demo_folder
from gptj_batch.prompts.tokenizer import END_OF_TEXT, Tokenizer

# Much below 1 attention is uniform, and a wrong score could not be seen.
SCORE_SPREAD: Final = 1.5
SHAPE: Final[dict[str, Any]] = {"n_positions": 512, "n_embd": 128, "n_layer": 3, "n_head": 4, "rotary_dim": 16}
SINGLE, MULTI, REGRESSION = "single label", "several labels", "regression"
CAUSAL, SPAN = "language model", "spans"


@dataclass(frozen=True)
class Model:
    """A checkpoint, and the class of transformers that reads it."""

    name: str
    class_name: str
    folder: Path


_DEMO: Final[dict[str, tuple[str, DemoHead]]] = {
    CAUSAL: ("GPTJForCausalLM", "causal-lm"),
    SINGLE: ("GPTJForSequenceClassification", "sequence-classification"),
    SPAN: ("GPTJForQuestionAnswering", "question-answering"),
}
_RANDOM: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    CAUSAL: ("GPTJForCausalLM", {}),
    SINGLE: ("GPTJForSequenceClassification", {"num_labels": 5}),
    MULTI: ("GPTJForSequenceClassification", {"num_labels": 6, "problem_type": "multi_label_classification"}),
    REGRESSION: ("GPTJForSequenceClassification", {"num_labels": 1}),
    SPAN: ("GPTJForQuestionAnswering", {}),
}


def models(kind: str, folder: Path) -> list[Model]:
    """Return the demo's checkpoint of a kind, if it has one, and a random one, which is written to `folder`."""
    found = []
    if kind in _DEMO:
        class_name, head = _DEMO[kind]
        found.append(Model("demo", class_name, demo_folder(head)))
    class_name, settings = _RANDOM[kind]
    target = folder / kind.replace(" ", "-")
    if not target.exists():
        _save_random(class_name, settings, target)
    return [*found, Model("random", class_name, target)]


def _save_random(class_name: str, settings: dict[str, Any], folder: Path) -> None:
    source = demo_folder("causal-lm")
    tokenizer = Tokenizer.from_folder(source)
    end = tokenizer.token_id(END_OF_TEXT)
    config = transformers.GPTJConfig(
        **SHAPE, **settings, vocab_size=tokenizer.vocab_size, bos_token_id=end, eos_token_id=end
    )
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(config)
    with torch.no_grad():
        for module in model.modules():
            _spread(module, math.sqrt(SCORE_SPREAD / config.n_embd))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)


def _spread(module: nn.Module, spread: float) -> None:
    """Draw a module's weights anew, so wide that a row's outputs differ clearly."""
    if isinstance(module, nn.Linear):
        module.weight.normal_(0.0, spread)
    elif isinstance(module, nn.LayerNorm):
        module.weight.normal_(1.0, 0.2)
    elif isinstance(module, nn.Embedding):
        module.weight.normal_(0.0, 1.0)
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        module.bias.normal_(0.0, 0.2)
