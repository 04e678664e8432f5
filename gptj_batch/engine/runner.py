"""Runner: one forward pass over a step, and the next token of every sequence that it completes.

Shape letters: see gptj_batch.engine.
"""

from typing import Protocol

import torch
from torch import Tensor

from gptj_batch.engine.beam_offers import Offer, choose_or_offer
from gptj_batch.engine.body import Body
from gptj_batch.engine.paged_attention import PagedAttention
from gptj_batch.engine.sampling import Choice
from gptj_batch.engine.scheduler import Step
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.step_batch import StepBatch, build_step_batch


class Forward(Protocol):
    """A way to feed a step's tokens."""

    def __call__(self, batch: StepBatch) -> Tensor | None:
        """Return the logits of `batch.logit_rows`, (S, V); None where S is 0."""
        ...


class Runner:
    """Hold the model's body and the way to its KV cache."""

    def __init__(
        self,
        body: Body,
        attention: PagedAttention,
        block_size_tokens: int,
        eos_token_ids: tuple[int, ...],
        forward: Forward | None = None,
    ) -> None:
        """Run steps by `forward`; without one, launch them one by one."""
        self._body = body
        self._attention = attention
        self._block_size_tokens = block_size_tokens
        self.eos_token_ids = eos_token_ids
        self._forward = forward or self._launch

    @torch.inference_mode()
    def run(self, step: Step) -> list[tuple[Sequence, Choice | Offer]]:
        """Feed the step's tokens and choose the next one wherever a sequence's last token was among them."""
        batch = build_step_batch(step, self._block_size_tokens, self._body.device)
        logits = self._forward(batch)
        if logits is None:
            return []
        return list(zip(batch.sequences, choose_or_offer(logits, batch.sequences, self.eos_token_ids), strict=True))

    def _launch(self, batch: StepBatch) -> Tensor | None:
        """Feed a step's tokens; see `Forward`."""
        hidden = self._body.encode(batch.token_ids, batch.positions, self._attention.plan(batch), batch.read)
        return self._body.project(hidden) if batch.sequences else None
