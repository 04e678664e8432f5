"""GPT-J without a language modelling head on vLLM: vLLM's own blocks, with the head that it lacks, or with none.

What a head makes of a token travels, and not its hidden state: it is applied in the engine's process. It computes in
float32, as the native engine's does. These classes have the interface that vLLM asks of a pooling model.

Shape letters: T tokens of a step   E model width
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.model_executor.layers.pooler import DispatchPooler
from vllm.model_executor.layers.pooler.tokwise import pooler_for_token_classify
from vllm.model_executor.models.gpt_j import GPTJForCausalLM, GPTJModel
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix

from gptj_batch.backends.vllm_settings import ARCHITECTURES

NUM_LOGITS: Final = 2  # of a token as an answer's first, and as its last
HEADS: Final = ("lm_head.", "score.", "qa_outputs.")
BODY: Final = "transformer."


class _Pooling(nn.Module):
    """The blocks, and what all of these models have in common."""

    is_pooling_model = True
    default_seq_pooling_type = "LAST"
    default_tok_pooling_type = "ALL"
    hf_to_vllm_mapper = GPTJForCausalLM.hf_to_vllm_mapper

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.transformer = GPTJModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer"))

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the tokens' embeddings: (T, E)."""
        embedded: Tensor = self.transformer.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return what the pooler reads of each token, here its last hidden state: (T, E)."""
        hidden: Tensor = self.transformer(input_ids, positions, intermediate_tensors, inputs_embeds)
        return hidden

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint's tensors, in vLLM's way."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded


class GPTJForSpans(_Pooling):
    """Give each token's two logits, for question answering."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.qa_outputs = nn.Linear(self.config.n_embd, NUM_LOGITS, dtype=torch.float32)
        self.pooler = pooler_for_token_classify(vllm_config.model_config.pooler_config)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the logits: (T, 2), float32."""
        hidden = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        logits: Tensor = self.qa_outputs(hidden.float())
        return logits


class GPTJForVectors(_Pooling):
    """Give a text's vector; of a checkpoint with any head, which is not read, or without."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pooler = DispatchPooler.for_embedding(vllm_config.model_config.pooler_config)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the body's tensors, which have no prefix where a checkpoint holds the body alone."""
        return super().load_weights(_of_body(weights))


def _of_body(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, weight in weights:
        if not name.startswith(HEADS):
            yield (name if name.startswith(BODY) else BODY + name), weight


def register() -> None:
    """Make the models known to vLLM under the names that `engine_arguments` gives them."""
    ModelRegistry.register_model(ARCHITECTURES["span"], GPTJForSpans)
    ModelRegistry.register_model(ARCHITECTURES["embed"], GPTJForVectors)
