"""What a model takes of a GPU's memory on vLLM: the arithmetic, from config.json alone."""

from dataclasses import dataclass
from typing import Any, Final

from gptj_batch.backends.vllm_settings import BYTES_OF, Shape
from gptj_batch.engine.config import GIB

# Activations of a step, logits and captured graphs; vLLM measures its own when it starts.
BESIDE_BYTES: Final = GIB
DEFAULT_UTILIZATION: Final = 0.9  # vLLM's gpu_memory_utilization


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of a model on vLLM."""

    weight_bytes: int
    kv_bytes_per_token: int
    context_tokens: int
    utilization: float

    @classmethod
    def of(cls, config: dict[str, Any], dtype: str, engine_kwargs: dict[str, Any], num_gpus: int = 1) -> "MemoryPlan":
        """Return the plan for a GPU's share of a model, with this config.json, split over so many GPUs."""
        vocab, width, layers, positions = (_size(config, *of) for of in _SIZES)
        inner = config.get("n_inner") or 4 * width
        # q, k, v and out have no bias; the two of the MLP have, and so has the head.
        per_layer = 4 * width * width + 2 * width * inner + inner + width + 2 * width
        num_weights = 2 * vocab * width + vocab + layers * per_layer + 2 * width
        shape = Shape(n_positions=positions, n_layer=layers, n_embd=width)
        return cls(
            weight_bytes=num_weights * BYTES_OF[dtype] // num_gpus,
            kv_bytes_per_token=shape.kv_bytes_per_token(dtype) // num_gpus,
            context_tokens=min(positions, int(engine_kwargs.get("max_model_len", positions))),
            utilization=float(engine_kwargs.get("gpu_memory_utilization", DEFAULT_UTILIZATION)),
        )

    @property
    def least_bytes(self) -> int:
        """Return the memory of the smallest GPU that holds one whole context beside the weights."""
        return int(
            (self.weight_bytes + BESIDE_BYTES + self.context_tokens * self.kv_bytes_per_token) / self.utilization
        )

    def cache_tokens(self, gpu_bytes: int) -> int:
        """Return the tokens of KV cache that a GPU of so much memory has room for."""
        free = int(gpu_bytes * self.utilization) - self.weight_bytes - BESIDE_BYTES
        return max(0, free // self.kv_bytes_per_token)

    def __str__(self) -> str:
        at_16 = self.cache_tokens(16 * GIB)
        fits = (
            f"on 16 GiB there is room for {at_16:,} tokens, {at_16 / self.context_tokens:.1f} contexts at once"
            if at_16 >= self.context_tokens
            else "16 GiB are too few"
        )
        return (
            f"memory on vLLM, per GPU: weights {self.weight_bytes / GIB:.1f} GiB, KV cache "
            f"{self.kv_bytes_per_token / 1024:.0f} KiB a token, about {BESIDE_BYTES / GIB:.0f} GiB beside them, at "
            f"gpu_memory_utilization {self.utilization:g}: one context of {self.context_tokens:,} tokens takes a GPU "
            f"of {self.least_bytes / GIB:.1f} GiB; {fits}"
        )


# The two names that a size may have in config.json, and what it is where neither stands there.
_SIZES: Final = (
    ("vocab_size", "vocab_size", 50400),
    ("hidden_size", "n_embd", 4096),
    ("num_hidden_layers", "n_layer", 28),
    ("max_position_embeddings", "n_positions", 2048),
)


def _size(config: dict[str, Any], other: str, name: str, default: int) -> int:
    return int(config.get(other, config.get(name, default)))
