"""What a GPT-J weighs and costs, from its config.json alone: parameters, bytes, and operations a token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Numbers of one model.

    body_parameters: of the blocks, which every token goes through    head_parameters: of the projection to the
    vocabulary, which only tokens go through whose next one is wanted
    """

    body_parameters: int
    head_parameters: int
    embedding_parameters: int
    num_layers: int
    width: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelSizes":
        """Read a `config.json`, with GPT-J's defaults for what is not there."""
        width, layers = int(config.get("n_embd", 4096)), int(config.get("n_layer", 28))
        vocabulary, inner = int(config.get("vocab_size", 50400)), int(config.get("n_inner") or 4 * width)
        block = 4 * width * width + 2 * width * inner + inner + width + 2 * width
        return cls(
            body_parameters=layers * block + 2 * width,
            head_parameters=vocabulary * width + vocabulary,
            embedding_parameters=vocabulary * width,
            num_layers=layers,
            width=width,
        )

    @property
    def parameters(self) -> int:
        """Return the number of all parameters."""
        return self.body_parameters + self.head_parameters + self.embedding_parameters

    def weight_bytes(self, dtype: str) -> int:
        """Return the memory of the weights."""
        return self.parameters * BYTES[dtype]

    def cache_bytes_per_token(self, dtype: str) -> int:
        """Return the KV cache of one token: a key and a value of the model's width in every layer."""
        return 2 * self.num_layers * self.width * max(BYTES[dtype], 2)

    def operations(self, num_tokens: float, num_read: float, mean_context: float) -> float:
        """Return the floating-point operations of some tokens, `num_read` of which the vocabulary is computed for.

        Two a parameter, and in attention four a layer, channel and token looked back at.
        """
        attention = 4 * self.num_layers * self.width * mean_context * num_tokens
        return 2 * self.body_parameters * num_tokens + 2 * self.head_parameters * num_read + attention
