"""GPT-J in torch, with the interface that transformers documents."""

from gptj_batch.model.backbone import GPTJModel, GPTJPreTrainedModel
from gptj_batch.model.cache import DynamicCache
from gptj_batch.model.config import GPTJConfig
from gptj_batch.model.heads import GPTJForCausalLM, GPTJForQuestionAnswering, GPTJForSequenceClassification

__all__ = [
    "DynamicCache",
    "GPTJConfig",
    "GPTJForCausalLM",
    "GPTJForQuestionAnswering",
    "GPTJForSequenceClassification",
    "GPTJModel",
    "GPTJPreTrainedModel",
]
