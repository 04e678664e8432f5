"""Attention: what a block asks for (`Attend`), and the dense form of it, for whole batches and training.

Shape letters: see gptj_batch.model.rotary.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gptj_batch.model.cache import Cache


class Attend(Protocol):
    """Mix the values of the tokens that each token may see. The model knows no more of attention than this."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in one layer.

        query, key, value: (T, H, D), query and key rotated, query not scaled    returns: (T, H, D)
        """
        ...


class DenseAttend:
    """Causal attention over a padded batch, with or without a cache of the past.

    mask: (B or 1, 1 or H, S, K), added to the scores, or None for plain causal attention without a past.
    dropout: the share of attention weights dropped; 0.0 outside training.
    keep_weights: collect `weights`, a list of (B, H, S, K) per layer.
    """

    def __init__(
        self, batch_size: int, mask: Tensor | None, cache: Cache | None, dropout: float, keep_weights: bool
    ) -> None:
        self._batch_size = batch_size
        self._mask = mask
        self._cache = cache
        self._dropout = dropout
        self.weights: list[Tensor] | None = [] if keep_weights else None
        # The fused kernels recompute probabilities for the gradient as exp(score - logsumexp). Where every score is the
        # lowest number, log(K) is lost in it, and the gradient comes out K times too large.
        self._fused = not keep_weights and not (mask is not None and torch.is_grad_enabled() and _blinds_a_row(mask))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in one layer; see `Attend`."""
        query, key, value = (self._heads_first(x) for x in (query, key, value))
        if self._cache is not None:
            key, value = self._cache.update(key, value, layer)
        if self._fused:
            causal = self._mask is None
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=self._mask, dropout_p=self._dropout, is_causal=causal
            )
        else:
            mixed = self._explicit(query, key, value)
        return mixed.transpose(1, 2).flatten(0, 1)

    def _heads_first(self, x: Tensor) -> Tensor:
        """x: (B * S, H, D)    returns: (B, H, S, D)."""
        batch: Tensor = x.unflatten(0, (self._batch_size, -1))
        return batch.transpose(1, 2)

    def _explicit(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Compute what the fused kernel computes, step by step, to have the weights; scores in float32."""
        scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
        mask = self._mask
        if mask is None:
            mask = causal_mask(query.shape[2], 0, query.dtype, query.device)
        probabilities = F.dropout((scores + mask).softmax(-1).to(value.dtype), self._dropout)
        if self.weights is not None:
            self.weights.append(probabilities)
        return probabilities @ value


def _blinds_a_row(mask: Tensor) -> bool:
    """Tell whether some token may see no token at all, as padding on the left."""
    return bool((mask == torch.finfo(mask.dtype).min).all(-1).any())


def causal_mask(num_queries: int, num_past: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the additive mask that hides later tokens.

    Hidden scores get the most negative finite number rather than minus infinity, as in transformers: the row of a
    padding token that may see nothing then averages over everything, instead of turning into NaN.

    returns: (1, 1, S, K)
    """
    lowest = torch.finfo(dtype).min
    mask = torch.full((num_queries, num_past + num_queries), lowest, dtype=dtype, device=device)
    return mask.triu(num_past + 1)[None, None]


def dense_mask(
    num_queries: int,
    num_past: int,
    attention_mask: Tensor | None,
    sequence_ids: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """Return the additive mask of a padded batch, or None where plain causal attention says the same.

    attention_mask: (B, K), 1 for real tokens and 0 for padding; or (B or 1, 1 or H, S, K): added to the scores as it
        is, or, if it is bool, true where a key may be seen
    sequence_ids: (B, S), tokens of different ids do not see each other    returns: (B or 1, 1, S, K) or None
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return _additive(attention_mask.to(device), dtype)
    if attention_mask is None and sequence_ids is None and num_past == 0:
        return None
    mask = causal_mask(num_queries, num_past, dtype, device)
    lowest = torch.finfo(dtype).min
    if attention_mask is not None:
        num_keys = num_past + num_queries
        if attention_mask.shape[-1] != num_keys:
            raise ValueError(
                f"attention_mask must cover past and present tokens: {num_keys} wide, got {attention_mask.shape[-1]}"
            )
        hidden = ~attention_mask.to(device=device, dtype=torch.bool)
        mask = mask.masked_fill(hidden[:, None, None, :], lowest)
    if sequence_ids is not None:
        apart = sequence_ids[:, :, None] != sequence_ids[:, None, :]
        mask = mask.masked_fill(apart[:, None], lowest)
    return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring a mask of scores into `dtype`; hidden scores stay finite, for the reason given in `causal_mask`."""
    lowest = torch.finfo(dtype).min
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, lowest)
    return mask.clamp(min=lowest).to(dtype)


def packed_sequence_ids(position_ids: Tensor) -> Tensor | None:
    """Return which packed sequence each token belongs to, read from positions that restart; None where none does.

    position_ids: (B, S)    returns: (B, S) or None
    """
    jumps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1) != 1
    return jumps.cumsum(-1) if bool(jumps.any()) else None
