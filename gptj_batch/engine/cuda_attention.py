"""TritonPagedAttend: attention over the KV cache on a GPU.

Shape letters: see gptj_batch.engine.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from gptj_batch.engine.cuda_prompts import Spans, WholePrompts
from gptj_batch.engine.triton_attention import Pages, PrefillPlan, decode, plan_prefill, prefill, rotate_and_write


@dataclass(frozen=True, kw_only=True)
class AttendPlan:
    """Who looks where in one step; rows that decode come first.

    slots: (T,), block * P + place in it, or -1 for a row that is none    tables: (B, M), int32    lengths: (B,), int32,
        tokens of each decoding row, the present one included; 0 for a row that is none
    whole: runs of adjacent prompts that begin in this step    continued: chunks of those that began before it
    """

    slots: Tensor
    tables: Tensor
    lengths: Tensor
    whole: list[Spans]
    continued: PrefillPlan | None


def plan_attend(
    slots: Tensor,
    tables: Tensor,
    lengths: Tensor,
    chunks: Ordered[tuple[int, int, int]],
    chunk_tables: Tensor,
    padded_dim: int,
    dtype: torch.dtype,
) -> AttendPlan:
    """Sort out a step's chunks.

    slots, tables, lengths: see `AttendPlan`
    chunks: (first row, number of tokens, position of the first) of each    chunk_tables: (chunks, M), int32
    """
    began = [index for index, (_, _, start) in enumerate(chunks) if start > 0]
    continued = None
    if began:
        their_tables = chunk_tables[torch.tensor(began, device=chunk_tables.device)]
        continued = plan_prefill([chunks[index] for index in began], their_tables, padded_dim, dtype)
    whole = [(row, row + num_tokens) for row, num_tokens, start in chunks if start == 0]
    runs = [Spans.of(run, slots.device) for run in _adjacent(whole)]
    return AttendPlan(slots=slots, tables=tables, lengths=lengths, whole=runs, continued=continued)


def _adjacent(spans: Iterable[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Group (first row, row behind the last) so that each one's end is the next one's beginning."""
    gap, end = 0, -1
    numbered = []
    for span in sorted(spans):
        gap += span[0] != end
        end = span[1]
        numbered.append((gap, span))
    return [[span for _, span in run] for _, run in groupby(numbered, itemgetter(0))]


class TritonPagedAttend:
    """Store the step's keys and values, then let every token attend to its own sequence. One object per step.

    pages: each layer's    whole_prompts: attention over prompts that begin in this step, which needs no pages
    """

    def __init__(
        self, pages: Ordered[Pages], plan: AttendPlan, whole_prompts: WholePrompts, num_processors: int
    ) -> None:
        self._pages = pages
        self._plan = plan
        self._whole_prompts = whole_prompts
        self._num_processors = num_processors

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in one layer; see `gptj_batch.model.attention.Attend`.

        query, key, value: (T, H, D)    returns: (T, H, D)
        """
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output = torch.empty_like(query)
        rotate_and_write(query, key, value, None, self._plan.slots, self._pages[layer])
        self._mix(layer, query, key, value, output)
        return output

    def rotate_and_attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, angles: tuple[Tensor, Tensor], output: Tensor
    ) -> None:
        """Do a layer's rotation as well, for projections that come from one product; query and key change in place.

        query, key, value, output: (T, H, D), heads contiguous, rows at any stride
        angles: cosine and sine, two of (T, R // 2), float32
        """
        rotate_and_write(query, key, value, angles, self._plan.slots, self._pages[layer])
        self._mix(layer, query, key, value, output)

    def _mix(self, layer: int, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        """query, key, value, output: (T, H, D), query and key rotated."""
        plan, num_decoding = self._plan, len(self._plan.lengths)
        if num_decoding:
            rows = slice(num_decoding)
            decode(query[rows], self._pages[layer], plan.tables, plan.lengths, output[rows], self._num_processors)
        if plan.continued is not None:
            prefill(query, self._pages[layer], plan.continued, output)
        for spans in plan.whole:
            output[spans.rows] = self._whole_prompts(query[spans.rows], key[spans.rows], value[spans.rows], spans)
