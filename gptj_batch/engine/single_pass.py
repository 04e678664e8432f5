"""SinglePass: requests that need no generation, answered in one pass over packed rows, without a cache.

Shape letters: see gptj_batch.engine. Here S is the tokens that are read.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gptj_batch.engine.body import Body, Rotated
from gptj_batch.engine.readers import make_reader
from gptj_batch.engine.row import Row
from gptj_batch.model import HeadModel
from gptj_batch.results import Failed, HeadResult


class TreeAttend:
    """Attention within each row: the context causally, the branches along the tree."""

    def __init__(self, rows: list[Row], device: torch.device) -> None:
        self._spans: list[tuple[int, int, int, Tensor | None]] = []
        first = 0
        for row in rows:
            num_context, stop = len(row.context), first + row.num_tokens
            seen = row.tree.seen(num_context).to(device) if row.tree.num_branch_tokens else None
            self._spans.append((first, first + num_context, stop, seen))
            first = stop

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in one layer; see `gptj_batch.model.attention.Attend`.

        query, key, value: (T, H, D)    returns: (T, H, D)
        """
        output = torch.empty_like(query)
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        for first, branch, stop, seen in self._spans:
            context, whole = slice(first, branch), slice(first, stop)
            mixed = F.scaled_dot_product_attention(
                query[:, :, context], key[:, :, context], value[:, :, context], is_causal=True
            )
            output[context] = mixed[0].transpose(0, 1)
            if seen is not None:
                mixed = F.scaled_dot_product_attention(
                    query[:, :, branch:stop], key[:, :, whole], value[:, :, whole], attn_mask=seen
                )
                output[branch:stop] = mixed[0].transpose(0, 1)
        return output


class SinglePass:
    """Answer waiting requests, as many per step as the token budget allows, shortest first.

    What has come in by the time the last batch is used up is sorted and served as the next one, so that nothing is
    overtaken for ever.
    """

    def __init__(self, model: HeadModel, body: Body, max_step_tokens: int) -> None:
        self._body = body
        self._read = make_reader(model, body)
        self._max_step_tokens = max_step_tokens
        self._arrived: list[Row] = []
        self._sorted: list[Row] = []  # longest first: rows are taken from the end

    @property
    def has_unfinished(self) -> bool:
        """Say whether any row waits."""
        return bool(self._arrived or self._sorted)

    def __iter__(self) -> Iterator[Row]:
        yield from self._sorted
        yield from self._arrived

    def add(self, row: Row) -> None:
        """Let a row wait for its turn."""
        self._arrived.append(row)

    def release(self, row: Row) -> None:
        """Let go of a row that has been cancelled."""
        (self._sorted if row in self._sorted else self._arrived).remove(row)

    def step(self) -> list[tuple[Row, HeadResult | Failed]]:
        """Answer the next rows."""
        rows = self._take_rows()
        if not rows:
            return []
        return list(zip(rows, self._answer(rows), strict=True))

    def _take_rows(self) -> list[Row]:
        """Take rows up to the token budget; a single row may be longer than it."""
        if not self._sorted:
            self._sorted = sorted(self._arrived, key=lambda row: row.num_tokens, reverse=True)
            self._arrived = []
        rows: list[Row] = []
        budget = self._max_step_tokens
        while self._sorted and (not rows or self._sorted[-1].num_tokens <= budget):
            rows.append(self._sorted.pop())
            budget -= rows[-1].num_tokens
        return rows

    @torch.inference_mode()
    def _answer(self, rows: list[Row]) -> list[HeadResult | Failed]:
        """Feed the rows, and let the head read what it needs of the last hidden states."""
        device = self._body.device
        token_ids: list[int] = []
        positions: list[int] = []
        read: list[int] = []
        for row in rows:
            token_ids += row.context + row.tree.token_ids[1:]
            positions += row.positions
            read += range(len(token_ids) - row.num_read, len(token_ids))
        hidden = self._body.encode(
            torch.tensor(token_ids, device=device),
            torch.tensor(positions, device=device),
            Rotated(TreeAttend(rows, device), len(token_ids), self._body.num_heads),
        )
        return self._read(hidden[torch.tensor(read, device=device)], rows)
