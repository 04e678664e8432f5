"""The cache: where the benchmarks, and the tests of vLLM, keep what takes minutes to make."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return the user's cache, or where there is no home (a container, some CI), a folder among the temporary ones."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "gptj_batch"
    try:
        return Path.home() / ".cache" / "gptj_batch"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "gptj_batch"
