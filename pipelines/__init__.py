"""Pipelines: a job's configuration, the one spine that runs it on Ray Data, and the functions for notebooks.

    from pipelines import generate, classify, extract, score, embed

Importing this loads neither torch nor Ray; both wait for the first call.
"""

from pipelines.classify import classify
from pipelines.embed import embed
from pipelines.extract import extract
from pipelines.generate import generate
from pipelines.score import score
from pipelines.warm import shutdown, summary, warm_replicas

__all__ = ["classify", "embed", "extract", "generate", "score", "shutdown", "summary", "warm_replicas"]
