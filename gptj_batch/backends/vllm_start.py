"""Starting vLLM's engine: tried again where its process is killed, and with the cause in words where it does not start.

How often is bounded here and not by Ray, which would start a replica anew for settings that can never work, too.
"""

import re
from typing import Any, Final

from gptj_batch.backends.vllm_process import cause_kept
from gptj_batch.backends.vllm_settings import VLLMSettings
from gptj_batch.errors import BackendError, ConfigError, shorten

ATTEMPTS: Final = 2
KILLED: Final = (
    f"vLLM's engine did not start: its process was killed while it loaded the model, {ATTEMPTS} times; most often "
    "it is the kernel, for want of memory: give the machine more, or lower backend.kv_cache_gb or model.dtype"
)
# What vLLM says of an engine's process that a signal ended; nothing where its exit code was not yet known.
_KILLED: Final = re.compile(r"Failed core proc\(s\): \{(\}|[^}]*: -\d+)")


async def start(settings: VLLMSettings, arguments: dict[str, Any]) -> Any:
    """Return a running `AsyncLLM`; its process is a child of this thread, which lives as long as the backend.

    Raises ConfigError for settings that vLLM refuses, BackendError where its engine does not start.
    """
    from vllm.config import PoolerConfig, StructuredOutputsConfig
    from vllm.v1.engine.async_llm import AsyncLLM

    from gptj_batch.backends.vllm_models import register

    register()
    if settings.pooling is not None:
        arguments = arguments | {"pooler_config": PoolerConfig(seq_pooling_type=settings.pooling.upper())}
    if settings.holds_texts:
        arguments = arguments | {"structured_outputs_config": StructuredOutputsConfig(backend="guidance")}
    for attempt in range(1, ATTEMPTS + 1):
        config = _checked(arguments)
        with cause_kept() as cause:
            try:
                return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
            except Exception as error:
                if reason := cause() or ("" if _KILLED.search(str(error)) else said(error)):
                    raise BackendError(f"vLLM's engine did not start: {reason}") from error
                if attempt == ATTEMPTS:
                    raise BackendError(KILLED) from error
    raise AssertionError("the last attempt returns or raises")


def said(error: BaseException) -> str:
    """Return an error's message in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return shorten(" ".join(lines) or type(error).__name__, 400)


def _checked(arguments: dict[str, Any]) -> Any:
    """Return vLLM's configuration. Raises ConfigError."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        return AsyncEngineArgs(**arguments).create_engine_config()
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"backend: vLLM refuses its settings: {said(error)}") from error
