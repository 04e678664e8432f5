"""Backends: the seam behind which a model runs. Importing this package loads no torch; making a backend does."""

from gptj_batch.backends.base import Backend, TokenCounts
from gptj_batch.backends.factory import make_backend

__all__ = ["Backend", "TokenCounts", "make_backend"]
