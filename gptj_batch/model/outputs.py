"""What a model returns: the output objects of transformers' documentation, field for field.

Shape letters: see gptj_batch.model.rotary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from gptj_batch.model.cache import Cache


@dataclass
class ModelOutput:
    """Fields by name, by text key, or by place among those that are set: `out.logits`, `out["logits"]`, `out[0]`."""

    def keys(self) -> list[str]:
        """Return the names of the fields that are set."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def values(self) -> list[Any]:
        """Return the fields that are set."""
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Return the fields that are set, with their names."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are set, in order: what `return_dict=False` gives."""
        return tuple(self.values())

    def __getitem__(self, key: int | slice | str) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """last_hidden_state: (B, S, E)    hidden_states: L + 1 of (B, S, E)    attentions: L of (B, H, S, K)."""

    last_hidden_state: Tensor
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """loss: ()    logits: (B, S, V)    hidden_states: L + 1 of (B, S, E)    attentions: L of (B, H, S, K)."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """loss: ()    logits: (B, C)    hidden_states: L + 1 of (B, S, E)    attentions: L of (B, H, S, K)."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """loss: ()    start_logits, end_logits: (B, S)    hidden_states, attentions: as in the other outputs."""

    loss: Tensor | None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
