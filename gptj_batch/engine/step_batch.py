"""StepBatch: a step laid out in rows, one a token.

Shape letters: see gptj_batch.engine.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gptj_batch.engine.block_tables import Copy
from gptj_batch.engine.scheduler import Chunk, Step
from gptj_batch.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """Rows that are tokens of one sequence.

    row, num_rows: their place in the step    start: how many of the sequence's tokens stand before the first of them
    block_table: the blocks that hold those and these
    """

    row: int
    num_rows: int
    start: int
    block_table: list[int]

    @property
    def rows(self) -> slice:
        """Return the rows' place in the step."""
        return slice(self.row, self.row + self.num_rows)

    @property
    def stop(self) -> int:
        """Return how many tokens there are with these."""
        return self.start + self.num_rows


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """All that one forward pass reads.

    token_ids, positions: (T,), int64    slots: of each row, its place among all the cache's: block * P + offset
    new_blocks: those that begin with this step    copies: those that begin as copies of others
    spans: rows of one token first, then those of several
    logit_rows: (S,), the last token of each of `sequences`, whose next token is to be chosen
    """

    token_ids: Tensor
    positions: Tensor
    slots: list[int]
    new_blocks: list[int]
    copies: list[Copy]
    spans: list[Span]
    logit_rows: Tensor
    sequences: list[Sequence]

    @property
    def read(self) -> Tensor | None:
        """Return `logit_rows`, or None where they are all rows, in order, as in most steps."""
        return None if len(self.logit_rows) == len(self.token_ids) else self.logit_rows


def build_step_batch(step: Step, block_size_tokens: int, device: torch.device) -> StepBatch:
    """Lay out a step: sequences that decode first, longest first, then chunks of prompts."""
    chunks = sorted(step.chunks, key=_order)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    spans: list[Span] = []
    for chunk in chunks:
        sequence, start, stop = chunk.sequence, chunk.start, chunk.start + chunk.num_tokens
        spans.append(Span(len(token_ids), chunk.num_tokens, start, sequence.block_table))
        token_ids += sequence.token_ids[start:stop]
        positions += range(start, stop)
        slots += (
            sequence.block_table[place // block_size_tokens] * block_size_tokens + place % block_size_tokens
            for place in range(start, stop)
        )
    logit_rows = [span.row + span.num_rows - 1 for span, chunk in zip(spans, chunks, strict=True) if chunk.is_last]
    return StepBatch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        slots=slots,
        new_blocks=step.new_blocks,
        copies=step.copies,
        spans=spans,
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64, device=device),
        sequences=[chunk.sequence for chunk in chunks if chunk.is_last],
    )


def _order(chunk: Chunk) -> tuple[bool, int]:
    return chunk.num_tokens > 1, -len(chunk.sequence.block_table)
