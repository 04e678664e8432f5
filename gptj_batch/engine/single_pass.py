"""SinglePass: requests that need no generation, answered in one pass over packed rows, without a cache.

Shape letters: see gptj_batch.engine. Here S is the tokens that are read.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gptj_batch.engine.body import Body
from gptj_batch.engine.kv_cache import bytes_per_token, free_bytes
from gptj_batch.engine.out_of_memory import TOO_LARGE, is_out_of_memory
from gptj_batch.engine.packed_rows import PackedRows
from gptj_batch.engine.readers import make_reader
from gptj_batch.engine.row import Row
from gptj_batch.engine.row_queue import RowQueue
from gptj_batch.engine.shared_prefix import PrefixStore
from gptj_batch.engine.tree_attend import RowAttention
from gptj_batch.model import HeadModel
from gptj_batch.results import Failed, HeadResult


class SinglePass:
    """Answer waiting requests, as many per step as the token budget allows.

    Rows that begin alike share their beginning: it is found, not declared, fed once, and held for the steps and the
    rows that follow. max_prefix_bytes bounds what is held; None is the keys and values of two contexts of n_positions
    tokens (67 MB for a 204 M model in bfloat16, 1.9 GB for GPT-J-6B), but no more than an eighth of the free memory.
    """

    def __init__(
        self,
        model: HeadModel,
        body: Body,
        attention: RowAttention,
        max_step_tokens: int,
        max_prefix_bytes: int | None = None,
    ) -> None:
        self._body = body
        self._attention = attention
        self._n_layer = model.config.n_layer
        self._read = make_reader(model, body)
        self._max_step_tokens = max_step_tokens
        shape = model.config
        token_bytes = bytes_per_token(shape.n_layer, shape.n_head, shape.head_dim, model.dtype)
        if max_prefix_bytes is None:
            max_prefix_bytes = min(2 * shape.n_positions * token_bytes, free_bytes(model.device) // 8)
        self.prefixes = PrefixStore(max_prefix_bytes, token_bytes)
        self._queue = RowQueue(self.prefixes, shape.n_layer)
        self.num_fed_tokens = 0

    @property
    def has_unfinished(self) -> bool:
        """Say whether any row waits."""
        return bool(self._queue)

    def __iter__(self) -> Iterator[Row]:
        yield from self._queue

    def add(self, row: Row) -> None:
        """Let a row wait for its turn."""
        self._queue.add(row)

    def release(self, row: Row) -> None:
        """Let go of a row that has been cancelled."""
        self._queue.release(row)

    def step(self) -> list[tuple[Row, HeadResult | Failed]]:
        """Answer the next rows; where the memory is not enough for them, later steps have half as many tokens."""
        rows = self._queue.take(self._max_step_tokens)
        if not rows:
            return []
        try:
            return list(zip(rows, self._answer(rows), strict=True))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if len(rows) == 1:
            return [(rows[0], Failed(key=rows[0].request.key, error=TOO_LARGE))]
        self._max_step_tokens = max(1, min(self._max_step_tokens, sum(row.num_tokens for row in rows)) // 2)
        self._queue.put_back(rows)
        return []

    @torch.inference_mode()
    def _answer(self, rows: list[Row]) -> list[HeadResult | Failed]:
        """Feed the rows, and let the head read what it needs of the last hidden states."""
        num_layers = rows[0].num_layers(self._n_layer)
        packed = self._pack(rows, self._n_layer if num_layers is None else num_layers)
        self.num_fed_tokens += len(packed.token_ids)
        hidden = self._encode(packed, num_layers)
        for shared in packed.shared:
            if shared.share.prefix.layers:
                self.prefixes.use(shared.share.prefix)
        return self._read(hidden, rows)

    def _pack(self, rows: list[Row], num_layers: int) -> PackedRows:
        """Lay out a pass: first those prefixes whose keys and values are not held, then the rows."""
        packed = PackedRows()
        for share in dict.fromkeys(row.share for row in rows):
            if share is None or len(share.prefix.layers) >= num_layers or packed.feeds(share.prefix):
                continue
            share.prefix.layers.clear()
            packed.feed(share.prefix, self._queue.is_worth_keeping(share) and self.prefixes.can_hold(share.prefix))
        packed.add(rows)
        return packed

    def _encode(self, packed: PackedRows, num_layers: int | None) -> Tensor:
        """Run the pass through so many layers, or through the whole model, and return what stands at the tokens read.

        returns: (S, E)
        """
        token_ids, positions, read = (
            torch.tensor(numbers, device=self._body.device)
            for numbers in (packed.token_ids, packed.positions, packed.read)
        )
        return self._body.encode(token_ids, positions, self._attention.plan(packed), read, num_layers)
