"""TritonPagedAttention: attention over the KV cache on a GPU.

Shape letters: see gptj_batch.engine.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch
from torch import Tensor

from gptj_batch.engine.body import FusedAttend
from gptj_batch.engine.cuda_graphs import DecodeInputs
from gptj_batch.engine.cuda_prompts import Spans, WholePrompts
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.step_batch import Span, StepBatch
from gptj_batch.engine.triton_attention import (
    Pages,
    PrefillPlan,
    count_padded,
    decode,
    plan_prefill,
    prefill,
    rotate_and_write,
)


class TritonPagedAttention:
    """Attention without a gather: the kernels follow the block tables, and rotate on the way into the cache.

    They read no place that was not written, so that blocks need not be cleared.

    whole_prompts: attention over prompts that begin in a step, for which the cache is not needed
    num_processors: the device's multiprocessors
    """

    def __init__(self, cache: KVCache, whole_prompts: WholePrompts, num_processors: int) -> None:
        self._cache = cache
        self._pages = [Pages(*layer) for layer in zip(cache.keys, cache.values, strict=True)]
        self._whole_prompts = whole_prompts
        self._num_processors = num_processors

    def plan(self, batch: StepBatch) -> FusedAttend:
        """Prepare a step; see `PagedAttention`."""
        cache = self._cache
        cache.copy(batch.copies)
        decoding = [span for span in batch.spans if span.num_rows == 1]
        later = [span for span in batch.spans if span.num_rows > 1 and span.start > 0]
        tables = _tables(later, cache.device)
        chunks = [(span.row, span.num_rows, span.start) for span in later]
        return self._step(
            slots=torch.tensor(batch.slots, dtype=torch.int32, device=cache.device),
            tables=_tables(decoding, cache.device),
            lengths=torch.tensor([span.stop for span in decoding], dtype=torch.int32, device=cache.device),
            whole=[Spans.of(run, cache.device) for run in _whole(batch.spans)],
            later=plan_prefill(chunks, tables, count_padded(cache.head_dim), cache.dtype) if later else None,
        )

    def plan_recorded(self, inputs: DecodeInputs) -> FusedAttend:
        """Prepare a step in which every row decodes, to be recorded: it reads `inputs` again in every replay."""
        return self._step(slots=inputs.slots, tables=inputs.tables, lengths=inputs.lengths, whole=[], later=None)

    def decode_inputs(self, batch: StepBatch) -> DecodeInputs:
        """Prepare a step in which every row decodes, and return what a recording of it reads."""
        device = self._cache.device
        self._cache.copy(batch.copies)
        return DecodeInputs(
            token_ids=batch.token_ids,
            positions=batch.positions,
            slots=torch.tensor(batch.slots, dtype=torch.int32, device=device),
            tables=_tables(batch.spans, device),
            lengths=torch.tensor([span.stop for span in batch.spans], dtype=torch.int32, device=device),
        )

    def _step(
        self, slots: Tensor, tables: Tensor, lengths: Tensor, whole: list[Spans], later: PrefillPlan | None
    ) -> "_TritonStep":
        return _TritonStep(
            pages=self._pages,
            whole_prompts=self._whole_prompts,
            num_processors=self._num_processors,
            slots=slots,
            tables=tables,
            lengths=lengths,
            whole=whole,
            later=later,
        )


@dataclass(frozen=True, kw_only=True)
class _TritonStep:
    """Hold what the kernels read in every layer of a step; rows that decode come first in it.

    slots: (T,), int32, -1 for a row that is none    tables: (B, M), int32    lengths: (B,), int32, 0 for such a row
    whole: runs of adjacent prompts that begin in this step    later: chunks of prompts that began before it
    """

    pages: list[Pages]
    whole_prompts: WholePrompts
    num_processors: int
    slots: Tensor
    tables: Tensor
    lengths: Tensor
    whole: list[Spans]
    later: PrefillPlan | None

    def __call__(self, layer: int, projected: Tensor, cos: Tensor, sin: Tensor, *, only_read: bool = False) -> Tensor:
        """Attend in one layer, for every token; see `FusedAttend`. Queries and keys are rotated where they stand."""
        pages = self.pages[layer]
        _, num_heads, _, head_dim = pages.keys.shape
        query, key, value = projected.unflatten(-1, (3, num_heads, head_dim)).unbind(1)
        mixed = projected.new_empty(query.shape)
        rotate_and_write(query, key, value, cos, sin, self.slots, pages)
        if len(self.lengths):
            rows = slice(len(self.lengths))
            decode(query[rows], pages, self.tables, self.lengths, mixed[rows], self.num_processors)
        if self.later is not None:
            prefill(query, pages, self.later, mixed)
        for spans in self.whole:
            mixed[spans.rows] = self.whole_prompts(query[spans.rows], key[spans.rows], value[spans.rows], spans)
        return mixed.flatten(1)


def _tables(spans: Ordered[Span], device: torch.device) -> Tensor:
    """Return the block tables, (B, M), int32, filled up with a block that nobody looks at."""
    width = max((len(span.block_table) for span in spans), default=1)
    filled = [span.block_table + [0] * (width - len(span.block_table)) for span in spans]
    return torch.tensor(filled, dtype=torch.int32, device=device).view(len(spans), width)


def _whole(spans: Iterable[Span]) -> list[list[tuple[int, int]]]:
    """Return the prompts that begin in this step as (first row, row behind the last), grouped where they adjoin."""
    runs: list[list[tuple[int, int]]] = []
    for span in spans:
        if span.num_rows > 1 and span.start == 0:
            if not runs or runs[-1][-1][1] != span.row:
                runs.append([])
            runs[-1].append((span.row, span.row + span.num_rows))
    return runs
