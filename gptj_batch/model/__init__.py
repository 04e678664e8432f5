"""GPT-J in torch, with the interface that transformers documents."""

from gptj_batch.model.backbone import GPTJModel, GPTJPreTrainedModel
from gptj_batch.model.cache import DynamicCache
from gptj_batch.model.config import GPTJConfig
from gptj_batch.model.heads import (
    MODEL_CLASSES,
    GPTJForCausalLM,
    GPTJForQuestionAnswering,
    GPTJForSequenceClassification,
    GPTJWithoutHead,
    HeadModel,
)

__all__ = [
    "MODEL_CLASSES",
    "DynamicCache",
    "GPTJConfig",
    "GPTJForCausalLM",
    "GPTJForQuestionAnswering",
    "GPTJForSequenceClassification",
    "GPTJModel",
    "GPTJPreTrainedModel",
    "GPTJWithoutHead",
    "HeadModel",
]
