"""make_backend: from settings to a running backend. Each kind is imported only when it is asked for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptj_batch.backends.base import Backend
from gptj_batch.backends.fake import DEFAULT_NUM_LABELS, DEFAULT_VOCAB_SIZE, DEFAULT_WIDTH, FakeBackend
from gptj_batch.backends.fake_faults import Faults, FaultyBackend
from gptj_batch.backends.vllm_install import argument_names, installed
from gptj_batch.backends.vllm_settings import VLLMSettings, check_engine_kwargs
from gptj_batch.engine.config import GIB, EngineConfig
from gptj_batch.errors import CheckpointError, ConfigError
from gptj_batch.model_folder import DEFAULT_WIDTH as GPT_J_WIDTH
from gptj_batch.model_folder import OTHER_NAMES, Head, label_names, read_config
from gptj_batch.requests import Pooling

DTYPES = ("auto", "float16", "bfloat16", "float32", "int8")


def make_backend(
    kind: str,
    *,
    model_path: str | Path,
    head: Head = "causal-lm",
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    max_step_tokens: int | None = None,
    max_running: int | None = None,
    kv_cache_gb: float | None = None,
    prefix_caching: bool = True,
    pooling: Pooling | None = None,
    holds_texts: bool = False,
    tensor_parallel: int = 1,
    num_threads: int | None = None,
    engine_kwargs: Mapping[str, Any] | None = None,
) -> Backend:
    """Make the backend `kind` ("native", "vllm", "fake"; "auto" is native) for a model with a head.

    None means "chosen for the device". pooling: of the task `embed`; vLLM's engine is made for it, or for all else
    holds_texts: whether texts are held to grammars, for which vLLM must be started
    tensor_parallel, num_threads, engine_kwargs: vLLM's alone
    Raises ConfigError for settings that cannot work, CheckpointError for a model folder that does not.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"model.dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if kv_cache_gb is not None and not kv_cache_gb > 0:
        raise ConfigError(f"backend.kv_cache_gb must be above 0, got {kv_cache_gb}")
    if kind == "fake":
        return _fake(model_path)
    if kind == "vllm":
        return _vllm(
            VLLMSettings(
                model_path=Path(model_path),
                head=head,
                dtype=dtype,
                device=device or "auto",
                pooling=pooling,
                holds_texts=holds_texts,
                max_step_tokens=max_step_tokens,
                max_running=max_running,
                kv_cache_gb=kv_cache_gb,
                prefix_caching=prefix_caching,
                tensor_parallel=tensor_parallel,
                num_threads=num_threads,
                engine_kwargs=engine_kwargs or {},
            )
        )
    if kind not in ("auto", "native"):
        raise ConfigError(f"backend.kind must be one of auto, native, vllm, fake, got {kind}")
    config = EngineConfig(
        max_step_tokens=max_step_tokens,
        max_running=max_running,
        kv_cache_bytes=None if kv_cache_gb is None else int(kv_cache_gb * GIB),
        prefix_caching=prefix_caching,
        device=device,
    )
    from gptj_batch.backends.native import NativeBackend  # loads torch

    return NativeBackend.from_pretrained(model_path, head=head, revision=revision, dtype=dtype, config=config)


def _vllm(settings: VLLMSettings) -> Backend:
    """Start vLLM. Raises ConfigError where it is missing or does not fit, before anything is loaded."""
    if problem := installed().why_unusable():
        raise ConfigError(f"backend.kind: {problem}")
    check_engine_kwargs(settings.engine_kwargs, argument_names())
    import torch

    from gptj_batch.backends.native import resolve_dtype
    from gptj_batch.backends.vllm import VLLMBackend

    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return VLLMBackend(replace(settings, device=device, dtype=resolve_dtype(settings.dtype, device)))


def _fake(model_path: str | Path) -> FakeBackend:
    """Return a fake with the sizes of a model that lies here, so that what it makes up can be decoded."""
    try:
        config = read_config(Path(model_path))
        num_labels = len(label_names(config, Path(model_path)))
    except CheckpointError:
        return FakeBackend(DEFAULT_VOCAB_SIZE, DEFAULT_NUM_LABELS, DEFAULT_WIDTH)
    width = config.get(OTHER_NAMES["n_embd"], config.get("n_embd"))
    sizes = (_count(config.get("vocab_size"), DEFAULT_VOCAB_SIZE), num_labels, _count(width, GPT_J_WIDTH))
    faults = Faults.of_config(config)
    return FakeBackend(*sizes) if faults is None else FaultyBackend(faults, *sizes)


def _count(value: object, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default
