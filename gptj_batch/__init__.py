"""GPT-J over whole datasets: the library half (records, prompts, model, engine, backends, stages)."""

from gptj_batch.requests import ClassifyRequest, LabelRequest, Request, SamplingParams, SpanRequest
from gptj_batch.results import Classified, Failed, Generated, Labelled, SpanLogits

__version__ = "0.1.0"

__all__ = [
    "Classified",
    "ClassifyRequest",
    "Failed",
    "Generated",
    "LabelRequest",
    "Labelled",
    "Request",
    "SamplingParams",
    "SpanLogits",
    "SpanRequest",
    "__version__",
]
