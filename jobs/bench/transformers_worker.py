"""transformers as an engine under test: `generate` and the heads, in batches, as its documentation shows them.

python -m jobs.bench.transformers_worker
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import transformers

from jobs.bench.batches import BatchOptions, batches
from jobs.bench.measure import serve_engine
from jobs.bench.protocol import Message
from jobs.bench.transformers_kinds import KINDS
from jobs.bench.work import Numbers, Work

CLASSES = {
    "causal-lm": "GPTJForCausalLM",
    "sequence-classification": "GPTJForSequenceClassification",
    "question-answering": "GPTJForQuestionAnswering",
}


class TransformersEngine:
    """A transformers model, given one batch after the other."""

    _model: Any

    def load(self, setup: Message) -> Message:
        """Load the checkpoint; GPT-J has one attention there that runs on a CPU, so there is nothing to choose."""
        self._model = getattr(transformers, CLASSES[setup["head"]]).from_pretrained(
            setup["checkpoint"], dtype=getattr(torch, setup["dtype"])
        )
        self._model.eval()
        return {"versions": {"transformers": version("transformers"), "torch": version("torch")}}

    def prepare(self, work: Work, options: Message) -> Callable[[], Numbers]:
        """See EngineUnderTest."""
        answer = KINDS[options.get("method", work.kind)]
        order = BatchOptions(size=options["batch_size"], is_sorted=options.get("sorted", False))

        @torch.inference_mode()
        def run() -> Numbers:
            outputs: Numbers = [[] for _ in work.rows]
            state: dict[str, Any] = {"all_rows": work.rows}  # and what a batch leaves for the next, within this run
            for indices in batches(work.rows, order):
                for index, output in zip(
                    indices, answer(self._model, [work.rows[i] for i in indices], state), strict=True
                ):
                    outputs[index] = output
            return outputs

        return run

    def counters(self) -> Message:
        """See EngineUnderTest."""
        return {}


if __name__ == "__main__":
    serve_engine(TransformersEngine())
