"""CudaForward: a step's logits on a GPU; steps in which every row decodes are played back from recordings.

Shape letters: see gptj_batch.engine.
"""

import torch
from torch import Tensor

from gptj_batch.engine.body import Body
from gptj_batch.engine.cuda_attention import TritonPagedAttention
from gptj_batch.engine.cuda_graphs import Capture, Decoded, DecodeInputs, pick
from gptj_batch.engine.cuda_path import record_graphs
from gptj_batch.engine.step_batch import StepBatch


class CudaForward:
    """Run steps through the model, recorded ones where that is possible.

    graphs_fact: how many steps are recorded, or why none is
    """

    def __init__(
        self, body: Body, attention: TritonPagedAttention, max_running: int, max_blocks: int, capture: Capture
    ) -> None:
        """Record the decoding steps of up to `max_running` rows of up to `max_blocks` blocks each."""
        self._body = body
        self._attention = attention
        inputs = DecodeInputs.empty(max_running, max_blocks, body.device)
        self._graphs, self.graphs_fact = record_graphs(self._decode, inputs, max_running, capture)

    @torch.inference_mode()
    def __call__(self, batch: StepBatch) -> Tensor | None:
        """Return the logits of `batch.logit_rows`, (S, V), until the next step overwrites them; None where S is 0."""
        decodes = all(span.num_rows == 1 for span in batch.spans)
        if self._graphs is not None and decodes and self._graphs.holds(len(batch.spans)):
            logits = self._graphs.run(self._attention.decode_inputs(batch)).logits
            return (logits if batch.read is None else logits[batch.read]) if batch.sequences else None
        hidden = self._body.encode(batch.token_ids, batch.positions, self._attention.plan(batch), batch.read)
        return self._body.project(hidden) if batch.sequences else None

    def _decode(self, inputs: DecodeInputs) -> Decoded:
        attend = self._attention.plan_recorded(inputs)
        return pick(self._body.project(self._body.encode(inputs.token_ids, inputs.positions, attend)))
