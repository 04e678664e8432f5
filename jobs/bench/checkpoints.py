"""The random 204 M parameter checkpoints that are measured on, made once, one for each head."""

from pathlib import Path
from typing import Final

import torch

from gptj_batch.model import GPTJConfig, GPTJForCausalLM, GPTJForQuestionAnswering, GPTJForSequenceClassification
from gptj_batch.model_folder import Head
from jobs.bench.cache import cache_folder

SHAPE: Final = {
    "vocab_size": 50400,
    "n_positions": 1024,
    "n_embd": 1024,
    "n_layer": 8,
    "n_head": 8,
    "rotary_dim": 64,
}
NAMES: Final[dict[Head, str]] = {
    "causal-lm": "bench-204m",
    "sequence-classification": "bench-204m-classify",
    "question-answering": "bench-204m-span",
}
CLASSES: Final = {
    "causal-lm": GPTJForCausalLM,
    "sequence-classification": GPTJForSequenceClassification,
    "question-answering": GPTJForQuestionAnswering,
}
NUM_CLASSES: Final = 4
KV_BYTES_PER_TOKEN: Final = 2 * SHAPE["n_layer"] * SHAPE["n_embd"] * 2  # keys and values, two bytes each


def checkpoint(head: Head) -> Path:
    """Return the folder of the checkpoint with this head, which is written if it is not there yet."""
    folder = cache_folder() / NAMES[head]
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        # Weights spread enough for tokens to differ clearly. A pad token that no text has lets transformers batch.
        config = GPTJConfig(
            **SHAPE,  # type: ignore[arg-type]
            initializer_range=0.04,
            num_labels=2 if head == "question-answering" else NUM_CLASSES,
            pad_token_id=None if head == "causal-lm" else SHAPE["vocab_size"] - 1,
        )
        CLASSES[head](config).save_pretrained(folder)
    return folder
