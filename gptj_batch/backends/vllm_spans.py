"""GPT-J for question answering on vLLM: vLLM's own GPT-J, with the head that it lacks.

The head is applied in the engine's process, so that two numbers a token travel and not its hidden state. It computes in
float32, as the native engine's does.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.model_executor.layers.pooler.tokwise import pooler_for_token_classify
from vllm.model_executor.models.gpt_j import GPTJForCausalLM, GPTJModel
from vllm.model_executor.models.interfaces_base import default_pooling_type
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix

ARCHITECTURE = "GPTJForQuestionAnswering"
NUM_LOGITS = 2  # of a token as an answer's first, and as its last


@default_pooling_type(tok_pooling_type="ALL")  # type: ignore[untyped-decorator, unused-ignore]
class GPTJForSpans(nn.Module):
    """Give each token's two logits; the interface is vLLM's."""

    is_pooling_model = True
    hf_to_vllm_mapper = GPTJForCausalLM.hf_to_vllm_mapper

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.transformer = GPTJModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer"))
        self.qa_outputs = nn.Linear(config.n_embd, NUM_LOGITS, dtype=torch.float32)
        self.pooler = pooler_for_token_classify(vllm_config.model_config.pooler_config)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the tokens' embeddings."""
        embedded: Tensor = self.transformer.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the logits: (tokens, 2), float32."""
        hidden: Tensor = self.transformer(input_ids, positions, intermediate_tensors, inputs_embeds)
        logits: Tensor = self.qa_outputs(hidden.float())
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint's tensors, in vLLM's way."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded


def register() -> None:
    """Make the model known to vLLM under the name that checkpoints give it."""
    ModelRegistry.register_model(ARCHITECTURE, GPTJForSpans)
