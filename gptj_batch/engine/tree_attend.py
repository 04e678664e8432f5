"""TreeAttend: attention of packed rows, each within itself and to the prefix that it shares.

A group's prefix is attended to once for all queries of the group, and each row's own part by itself; the two are merged
in float32 by the logarithms of their normalisers (Juravsky et al. 2024, Hydragen, eq. 3).

Shape letters: see gptj_batch.engine. Here K is the keys that are seen.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gptj_batch.engine.body import FusedAttend, Rotated
from gptj_batch.engine.packed_rows import PackedRows, RowSpan
from gptj_batch.engine.shared_prefix import SharedPrefix

# Explicit scores are made for so many bytes of queries at a time.
MAX_SCORE_BYTES = 64 * 1024**2


class RowAttention(Protocol):
    """A way to attend in packed rows."""

    def plan(self, packed: PackedRows) -> FusedAttend:
        """Prepare the attention of one pass, in all its layers."""
        ...


class TorchRowAttention:
    """Attend in plain torch, on any device."""

    def __init__(self, num_heads: int, dtype: torch.dtype, device: torch.device) -> None:
        self._num_heads = num_heads
        self._dtype = dtype
        self._device = device

    def plan(self, packed: PackedRows) -> FusedAttend:
        """Prepare a pass; see `RowAttention`."""
        return Rotated(TreeAttend(packed, self._dtype, self._device), len(packed.token_ids), self._num_heads)


class TreeAttend:
    """Attention of one pass; it leaves the keys and values of the prefixes that are kept with them.

    One call a row: on a CPU, batches of padded rows took 3 to 60 % more, for 32 rows of 32 tokens as for 3 of 316.
    """

    def __init__(self, packed: PackedRows, dtype: torch.dtype, device: torch.device) -> None:
        self._packed = packed
        self._biases = [_branch_bias(row, dtype, device) for row in packed.rows]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in one layer; see `gptj_batch.model.attention.Attend`.

        query, key, value: (T, H, D), where tokens behind the last row are padding    returns: (T, H, D)
        """
        mixed = torch.zeros_like(query)
        out = mixed.transpose(0, 1)
        logs = query.new_empty(out.shape[:2], dtype=torch.float32) if self._packed.shared else None
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        fed = self._feed(query, key, value, out)
        self._attend_within_rows(query, key, value, out, logs)
        for shared in self._packed.shared:
            assert logs is not None
            prefix, num_tokens, span = shared.share.prefix, shared.share.num_tokens, shared.span
            keys, values = fed[prefix] if prefix in fed else prefix.layers[layer]
            to_prefix, prefix_logs = attend(query[:, span], keys[:, :num_tokens], values[:, :num_tokens])
            out[:, span] = merge(out[:, span], logs[:, span], to_prefix, prefix_logs)
        return mixed

    def _feed(
        self, query: Tensor, key: Tensor, value: Tensor, out: Tensor
    ) -> dict[SharedPrefix, tuple[Tensor, Tensor]]:
        """Attend within the prefixes that are fed, and return their keys and values, contiguous.

        query, key, value, out: (H, T, D)
        """
        layers: dict[SharedPrefix, tuple[Tensor, Tensor]] = {}
        for fed in self._packed.fed:
            keys, values = key[:, fed.span].contiguous(), value[:, fed.span].contiguous()
            _attend_into(out, None, fed.span, query, keys, values)
            layers[fed.prefix] = keys, values
            if fed.is_kept:
                fed.prefix.layers.append((keys, values))
        return layers

    def _attend_within_rows(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logs: Tensor | None) -> None:
        """Attend within each row: its context causally, the branches along the tree.

        query, key, value, out: (H, T, D)    logs: (H, T), or None where they are not needed
        """
        for row, bias in zip(self._packed.rows, self._biases, strict=True):
            context, branch, whole = (
                slice(row.first, row.branch),
                slice(row.branch, row.stop),
                slice(row.first, row.stop),
            )
            _attend_into(out, logs, context, query, key[:, context], value[:, context])
            if bias is not None:
                _attend_into(out, logs, branch, query, key[:, whole], value[:, whole], bias)


def _attend_into(
    out: Tensor, logs: Tensor | None, span: slice, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> None:
    """Let the queries of a span attend, causally where there is no bias, and put what comes of it into their places.

    out, query: (H, T, D)    logs: (H, T)    key, value: (H, K, D)    bias: (Q, K)
    """
    if logs is None:
        mask = None if bias is None else bias[None, None]
        out[:, span] = F.scaled_dot_product_attention(
            query[None, :, span], key[None], value[None], attn_mask=mask, is_causal=bias is None
        )[0]
    else:
        out[:, span], logs[:, span] = attend(query[:, span], key, value, bias, is_causal=bias is None)


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attend, and return the logarithm of every query's normaliser too.

    query: (H, Q, D)    key, value: (H, K, D)    bias: (Q, K), added to the scores; is_causal: instead, where Q = K
    returns: (H, Q, D), and (H, Q) in float32
    """
    if query.device.type != "cpu":
        return attend_explicitly(query, key, value, bias, is_causal=is_causal)
    # What F.scaled_dot_product_attention runs, which keeps the logarithms to itself. Two batched products are up to a
    # third faster in bfloat16, but round the scores to it.
    mixed, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None], key[None], value[None], 0.0, is_causal, attn_mask=None if bias is None else bias[None, None]
    )
    return mixed[0], logs[0]


def attend_explicitly(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Do as `attend` does, step by step, with scores in float32: for devices whose kernels do not give logarithms."""
    num_heads, num_keys, head_dim = key.shape
    num_queries = max(1, MAX_SCORE_BYTES // (4 * num_heads * num_keys))
    mixed: list[Tensor] = []
    logs: list[Tensor] = []
    for first in range(0, query.shape[1], num_queries):
        queries = query[:, first : first + num_queries] * head_dim**-0.5
        scores = (queries @ key.transpose(1, 2)).float()
        if bias is not None:
            scores += bias[first : first + num_queries]
        elif is_causal:
            later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(first + 1)
            scores.masked_fill_(later, -torch.inf)
        logs.append(scores.logsumexp(-1))
        mixed.append((scores - logs[-1][..., None]).exp().to(value.dtype) @ value)
    return torch.cat(mixed, 1), torch.cat(logs, 1)


def merge(one: Tensor, one_logs: Tensor, other: Tensor, other_logs: Tensor) -> Tensor:
    """Return the attention over two sets of keys from the attention over each, weighed by their normalisers.

    one, other: (H, Q, D)    one_logs, other_logs: (H, Q)    returns: (H, Q, D)
    """
    weight = (one_logs - other_logs).sigmoid_()[..., None]
    return torch.lerp(other.float(), one.float(), weight).to(one.dtype)


def _branch_bias(row: RowSpan, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return what hides from a row's branch tokens those that they may not see, or None where there are none.

    returns: (Q, K)
    """
    if row.branch == row.stop:
        return None
    seen = row.tree.seen(row.branch - row.first)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).to(device)
