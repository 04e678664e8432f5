"""The dense key/value cache that `past_key_values` is; the engine has its own, paged one.

Shape letters: see gptj_batch.model.rotary.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """What the model asks of a cache; transformers' caches fit it too."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Add the present and return past and present together.

        key_states, value_states: (B, H, S, D)    returns: two of (B, H, K, D)
        """
        ...

    def get_seq_length(self) -> int:
        """Return the number of tokens that the cache holds."""
        ...


class CacheLayer(NamedTuple):
    """What one layer has seen; keys are rotated. keys, values: (B, H, K, D)."""

    keys: Tensor
    values: Tensor


class DynamicCache:
    """Keys and values of every layer, growing as tokens come."""

    def __init__(self) -> None:
        self.layers: list[CacheLayer] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Add the present and return past and present together; see `Cache`."""
        if layer_idx == len(self.layers):
            self.layers.append(CacheLayer(key_states, value_states))
        else:
            past = self.layers[layer_idx]
            keys = torch.cat((past.keys, key_states), dim=2)
            self.layers[layer_idx] = CacheLayer(keys, torch.cat((past.values, value_states), dim=2))
        return self.layers[layer_idx]

    def get_seq_length(self) -> int:
        """Return the number of tokens that the cache holds."""
        return self.layers[0].keys.shape[2] if self.layers else 0

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer_idx: int) -> CacheLayer:
        return self.layers[layer_idx]

    def crop(self, max_length: int) -> None:
        """Forget all but the first `max_length` tokens."""
        self.layers = [CacheLayer(keys[:, :, :max_length], values[:, :, :max_length]) for keys, values in self.layers]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch, in this order.

        indices: (any,), int64
        """
        self.layers = [CacheLayer(keys[indices], values[indices]) for keys, values in self.layers]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch `repeats` times, copies side by side."""
        self.layers = [
            CacheLayer(keys.repeat_interleave(repeats, dim=0), values.repeat_interleave(repeats, dim=0))
            for keys, values in self.layers
        ]
