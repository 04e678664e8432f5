"""Our settings in vLLM's words: one table, and what of vLLM's own may be passed beside it. No vLLM is imported here."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from gptj_batch.engine.config import GIB
from gptj_batch.errors import ConfigError, shorten
from gptj_batch.model_folder import Head
from gptj_batch.requests import Pooling

# What each setting of ours is to vLLM. `engine_arguments` makes the values.
TABLE: Final = {
    "model.path": "model",
    "model.dtype": "dtype",
    "backend.max_step_tokens": "max_num_batched_tokens",
    "backend.max_running": "max_num_seqs",
    "backend.kv_cache_gb": "kv_cache_memory_bytes",
    "backend.prefix_caching": "enable_prefix_caching",
    "backend.tensor_parallel": "tensor_parallel_size",
}
# Arguments that are not for a user to set: the answers would be others, or would not come.
FIXED: Final = {
    "tokenizer": "token ids go in and come out",
    "skip_tokenizer_init": "token ids go in and come out",
    "revision": "model.revision says it",
    "served_model_name": "nothing is served",
    "runner": "the task decides it",
    "hf_overrides": "config.json says what the model is",
    "convert": "the task decides it",
    "pooler_config": "the task decides it",
    "generation_config": "a job's decoding is the job's, whatever file lies beside the weights",
    "override_generation_config": "a job's decoding is the job's",
    "logprobs_mode": "log-probabilities are the model's own",
    "worker_cls": "a job file names no code",
    "scheduler_cls": "a job file names no code",
    "logits_processors": "a job file names no code",
    "io_processor_plugin": "a job file names no code",
    "structured_outputs_config": "a text is held to its grammar by llguidance, as the native engine does it",
    "reasoning_parser_plugin": "a job file names no code",
    "trust_remote_code": "a checkpoint brings no code",
    "worker_extension_cls": "it is what ends the engine with its replica",
    "enable_log_requests": "records are never logged",
    "data_parallel_size": "replicas.max says how many models there are",
    "pipeline_parallel_size": "a replica claims the GPUs of one node; use backend.tensor_parallel",
    "distributed_executor_backend": "a replica claims the GPUs of one node; use backend.tensor_parallel",
    "speculative_config": "what vLLM drafts is not covered by the checks of this backend",
}
# A block of the KV cache. On a CPU 32 tokens were fastest of 16, 32 and vLLM's own 128 (jobs.bench.vllm_env).
BLOCK_TOKENS: Final[dict[str, int]] = {"cpu": 32, "cuda": 16}
BYTES_OF: Final = {"float32": 4, "float16": 2, "bfloat16": 2}

Work = Literal["generate", "classify", "span", "embed"]
# The classes in vLLM. The first two are its own, the second made of the first; the others are ours (`vllm_models`).
ARCHITECTURES: Final[dict[Work, str]] = {
    "generate": "GPTJForCausalLM",
    "classify": "GPTJForSequenceClassification",
    "span": "GPTJForSpans",
    "embed": "GPTJForVectors",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model's config.json sizes its engine."""

    n_positions: int
    n_layer: int
    n_embd: int

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        return 2 * self.n_layer * self.n_embd * BYTES_OF[dtype]


@dataclass(frozen=True, kw_only=True)
class VLLMSettings:
    """What a replica on vLLM is started with; None means "chosen for the device".

    dtype, device: "auto" until `make_backend` has resolved them    pooling: of the task `embed`, None for any other
    holds_texts: whether texts are held to grammars, for which vLLM reads the model's tokenizer
    """

    model_path: Path
    head: Head
    dtype: str
    device: str
    pooling: Pooling | None = None
    holds_texts: bool = False
    max_step_tokens: int | None = None
    max_running: int | None = None
    kv_cache_gb: float | None = None
    prefix_caching: bool = True
    tensor_parallel: int = 1
    num_threads: int | None = None
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Work:
        """Return what the engine is made for: vLLM generates or pools, never both."""
        if self.pooling is not None:
            return "embed"
        if self.head == "causal-lm":
            return "generate"
        return "classify" if self.head == "sequence-classification" else "span"


def check_engine_kwargs(engine_kwargs: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ConfigError for an argument that is one of our settings, or none of vLLM's.

    known: vLLM's argument names, none where vLLM is not installed here
    """
    setting_of = {argument: setting for setting, argument in TABLE.items()}
    for name in engine_kwargs:
        where = f"backend.engine_kwargs.{shorten(name)}"
        if name in setting_of:
            raise ConfigError(f"{where}: set {setting_of[name]} instead")
        if name in FIXED:
            raise ConfigError(f"{where}: cannot be set: {FIXED[name]}; leave it out")
        if known and name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{where}: vLLM has no such argument{hint}")


def engine_arguments(settings: VLLMSettings, shape: Shape) -> dict[str, Any]:
    """Return the arguments of vLLM's engine, without a pooler's.

    Raises ConfigError for a dtype that vLLM has not, and for a KV cache that would not hold one block.
    """
    if settings.dtype not in BYTES_OF:
        raise ConfigError(
            f"model.dtype: {settings.dtype} is the native engine's own; with backend.kind vllm use "
            f"{', '.join(BYTES_OF)}, or set backend.kind to native"
        )
    block = int(settings.engine_kwargs.get("block_size", BLOCK_TOKENS[_device_type(settings.device)]))
    kv_bytes = _kv_bytes(settings, shape)
    arguments: dict[str, Any] = {
        "model": str(settings.model_path),
        "dtype": settings.dtype,
        "max_num_batched_tokens": settings.max_step_tokens,
        "max_num_seqs": _max_running(settings),
        "kv_cache_memory_bytes": kv_bytes,
        "enable_prefix_caching": settings.prefix_caching and settings.pooling != "mean",
        "tensor_parallel_size": settings.tensor_parallel,
        "block_size": block,
        "max_model_len": _context_tokens(shape, settings.dtype, kv_bytes, block),
        "skip_tokenizer_init": not settings.holds_texts,
        "hf_overrides": {"architectures": [ARCHITECTURES[settings.work]]},
        "generation_config": "vllm",
        "worker_extension_cls": "gptj_batch.backends.vllm_worker.ReplicaWorker",
        "disable_log_stats": True,
        "seed": 0,
    }
    if settings.tensor_parallel > 1:
        arguments["distributed_executor_backend"] = "mp"
    if settings.work != "generate":
        arguments |= {"runner": "pooling", "convert": "classify" if settings.work == "classify" else "none"}
    arguments |= settings.engine_kwargs
    if settings.pooling == "mean" and settings.max_step_tokens is not None:
        # A mean is taken in one step: what does not fit into it would not be cut but refused.
        arguments["max_num_batched_tokens"] = max(settings.max_step_tokens, arguments["max_model_len"])
    return {name: value for name, value in arguments.items() if value is not None}


def _device_type(device: str) -> str:
    return device.split(":")[0]


def _max_running(settings: VLLMSettings) -> int | None:
    """Return the sequences at once: no more than a step has tokens, which vLLM refuses."""
    if settings.max_step_tokens is None:
        return settings.max_running
    return min(settings.max_running or 256, settings.max_step_tokens)


def _kv_bytes(settings: VLLMSettings, shape: Shape) -> int | None:
    """Return the size of the KV cache; None leaves to vLLM what the GPU has beside the weights."""
    if settings.kv_cache_gb is not None:
        return int(settings.kv_cache_gb * GIB)
    if _device_type(settings.device) != "cpu":
        return None
    # Twice the longest context, or 1 GiB: vLLM would take half of the machine's memory.
    return max(GIB, 2 * shape.n_positions * shape.kv_bytes_per_token(settings.dtype))


def _context_tokens(shape: Shape, dtype: str, kv_bytes: int | None, block: int) -> int:
    """Return how long a context may be: the model's, or what the KV cache holds.

    vLLM would not start with a cache that is smaller than a context; here a row that does not fit is that row's error.
    """
    if kv_bytes is None:
        return shape.n_positions
    num_blocks = kv_bytes // (block * shape.kv_bytes_per_token(dtype))
    usable = (num_blocks - 1) * block  # vLLM keeps one block for itself
    if usable < block:
        raise ConfigError(
            f"backend.kv_cache_gb must hold at least two blocks of {block} tokens ({2 * block} x "
            f"{shape.kv_bytes_per_token(dtype)} bytes), got {kv_bytes} bytes; raise it"
        )
    return min(shape.n_positions, usable)
