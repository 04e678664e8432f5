"""What an output says of its making, in each of its files and in `run.json`."""

import hashlib
import json
import platform
from importlib import metadata

import gptj_batch
from gptj_batch.tasks.base import Settings

TEMPLATES = ("prompt", "text", "question", "context")  # the settings of any task that a record is rendered by
PACKAGES = ("torch", "ray", "pyarrow", "tokenizers", "safetensors")


def prompt_hash(task: Settings) -> str:
    """Return a hash of the task's templates, whichever it has."""
    settings = task.model_dump(mode="json")
    templates = {name: settings[name] for name in TEMPLATES if settings.get(name) is not None}
    return hashlib.sha256(json.dumps(templates, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of what makes rows, as they are in this process."""
    return {
        "gptj-batch": gptj_batch.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }
