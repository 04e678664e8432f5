"""GPT-J over whole datasets: the library half (records, prompts, model, engine, backends, stages)."""

from gptj_batch.requests import LabelRequest, Request, SamplingParams
from gptj_batch.results import Failed, Generated, Labelled

__version__ = "0.1.0"

__all__ = ["Failed", "Generated", "LabelRequest", "Labelled", "Request", "SamplingParams", "__version__"]
