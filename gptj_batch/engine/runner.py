"""Runner: one forward pass over a step, and the next token of every sequence that it completes.

Shape letters: see gptj_batch.engine.
"""

import torch

from gptj_batch.engine.beam_offers import Offer, choose_or_offer
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.padding import encode, project
from gptj_batch.engine.paged_attention import PagedAttend
from gptj_batch.engine.sampling import Choice
from gptj_batch.engine.scheduler import Step
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.step_batch import build_step_batch
from gptj_batch.model import GPTJForCausalLM


class Runner:
    """Hold the model and the KV cache."""

    def __init__(self, model: GPTJForCausalLM, cache: KVCache, eos_token_ids: tuple[int, ...]) -> None:
        self._model = model
        self._cache = cache
        self.eos_token_ids = eos_token_ids

    @torch.inference_mode()
    def run(self, step: Step) -> list[tuple[Sequence, Choice | Offer]]:
        """Feed the step's tokens and choose the next one wherever a sequence's last token was among them."""
        batch = build_step_batch(step, self._cache)
        self._cache.clear(batch.new_blocks)
        if step.copies:
            self._cache.copy(step.copies)
        attend = PagedAttend(self._cache, batch)
        hidden = encode(self._model.transformer, batch.token_ids, batch.positions, attend)
        if not batch.sequences:
            return []
        logits = project(self._model.lm_head, hidden[batch.logit_rows])
        return list(zip(batch.sequences, choose_or_offer(logits, batch.sequences, self.eos_token_ids), strict=True))
