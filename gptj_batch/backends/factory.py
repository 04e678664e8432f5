"""make_backend: from settings to a running backend. Each kind is imported only when it is asked for."""

import json
from pathlib import Path

from gptj_batch.backends.base import Backend
from gptj_batch.backends.fake import DEFAULT_VOCAB_SIZE, FakeBackend
from gptj_batch.engine.config import GIB, EngineConfig
from gptj_batch.errors import ConfigError

DTYPES = ("auto", "float16", "bfloat16", "float32")


def make_backend(
    kind: str,
    *,
    model_path: str | Path,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    max_step_tokens: int | None = None,
    max_running: int | None = None,
    kv_cache_gb: float | None = None,
) -> Backend:
    """Make the backend `kind` ("auto", "native" or "fake") for a model; None means "chosen for the device".

    Raises ConfigError for settings that cannot work, CheckpointError for a model folder that does not.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"model.dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if kv_cache_gb is not None and not kv_cache_gb > 0:
        raise ConfigError(f"backend.kv_cache_gb must be above 0, got {kv_cache_gb}")
    if kind == "fake":
        return FakeBackend(_vocab_size(model_path))
    if kind == "vllm":
        raise ConfigError("backend.kind: this version has no vllm backend yet; set it to native")
    if kind not in ("auto", "native"):
        raise ConfigError(f"backend.kind must be one of auto, native, vllm, fake, got {kind}")
    config = EngineConfig(
        max_step_tokens=max_step_tokens,
        max_running=max_running,
        kv_cache_bytes=None if kv_cache_gb is None else int(kv_cache_gb * GIB),
        device=device,
    )
    from gptj_batch.backends.native import NativeBackend  # loads torch

    return NativeBackend.from_pretrained(model_path, revision=revision, dtype=dtype, config=config)


def _vocab_size(model_path: str | Path) -> int:
    """Return the vocabulary of a model that lies here, so that its tokenizer can decode what the fake makes up."""
    try:
        vocab_size = json.loads((Path(model_path) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_VOCAB_SIZE
    return vocab_size if isinstance(vocab_size, int) and vocab_size > 0 else DEFAULT_VOCAB_SIZE
