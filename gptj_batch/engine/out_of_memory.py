"""What torch raises where memory is not enough, and what a request is told that is too large all by itself."""

import torch

_OF_THE_CPU = "can't allocate memory"
TOO_LARGE = (
    "out of memory: not even a small step with this row fits the device; lower backend.kv_cache_gb, or shorten the "
    "row (task.truncate, task.max_new_tokens)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device, or the machine, had no memory left for a step."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _OF_THE_CPU in str(error)
    )
