"""GPT-J over whole datasets: the library half (records, prompts, model, engine, backends, stages)."""

from gptj_batch.requests import (
    ClassifyRequest,
    EmbedRequest,
    LabelRequest,
    Request,
    SamplingParams,
    ScoreRequest,
    SpanRequest,
)
from gptj_batch.results import Classified, Embedded, Failed, Generated, Labelled, Scored, SpanLogits

__version__ = "0.1.0"

__all__ = [
    "Classified",
    "ClassifyRequest",
    "EmbedRequest",
    "Embedded",
    "Failed",
    "Generated",
    "LabelRequest",
    "Labelled",
    "Request",
    "SamplingParams",
    "ScoreRequest",
    "Scored",
    "SpanLogits",
    "SpanRequest",
    "__version__",
]
