"""PagedAttend: attention over the KV cache, in plain torch, for CPU and GPU.

Shape letters: see gptj_batch.engine.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.step_batch import DecodeGroup, PrefillChunk, StepBatch


class PagedAttend:
    """Store the step's keys and values, then let every token attend to its own sequence. One object per step."""

    def __init__(self, cache: KVCache, batch: StepBatch) -> None:
        self._cache = cache
        self._batch = batch
        self._scale = cache.head_dim**-0.5

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in one layer; see `gptj_batch.model.attention.Attend`.

        query, key, value: (T, H, D)    returns: (T, H, D)
        """
        self._cache.write(layer, self._batch.slots, key, value)
        output = torch.empty_like(query)
        for group in self._batch.decode_groups:
            output[group.rows] = self._decode(layer, group, query[group.rows])
        for chunk in self._batch.prefill_chunks:
            output[chunk.rows] = self._prefill(layer, chunk, query[chunk.rows], key[chunk.rows], value[chunk.rows])
        return output

    def _decode(self, layer: int, group: DecodeGroup, query: Tensor) -> Tensor:
        """Let one token per row look at its row's pages.

        Two batched products: at one query per row torch's fused attention on a CPU is 5 to 10 times slower in bf16
        (engine-facts 3.3). The softmax is in float32. Scaling the query first keeps float16 scores in range.

        query: (B - padding, H, D)    returns: (B - padding, H, D)
        """
        num_queries = len(query)
        if group.num_padding:
            query = F.pad(query, (0, 0, 0, 0, 0, group.num_padding))
        num_rows, num_heads, head_dim = query.shape
        keys, values = (x.view(num_rows * num_heads, -1, head_dim) for x in self._cache.read(layer, group.pages))
        scores = torch.bmm((query * self._scale).view(-1, 1, head_dim), keys.transpose(1, 2))
        scores = scores.view(num_rows, num_heads, -1).masked_fill_(group.hidden, -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return torch.bmm(weights.view(num_rows * num_heads, 1, -1), values).view_as(query)[:num_queries]

    def _prefill(self, layer: int, chunk: PrefillChunk, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Let the tokens of one sequence look back; what this step brought need not be read from the cache.

        query, key, value: (Q, H, D)    returns: (Q, H, D)
        """
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        if chunk.pages is None or chunk.seen is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self._scale)
        else:
            num_heads, num_context = query.shape[1], chunk.seen.shape[-1]
            keys, values = (
                x.view(1, num_heads, -1, self._cache.head_dim)[:, :, :num_context]
                for x in self._cache.read(layer, chunk.pages)
            )
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=chunk.seen, scale=self._scale)
        return mixed[0].transpose(0, 1)
