"""best: the highest of every row of logits, by the C++ kernels.

Shape letters: see gptj_batch.engine.
"""

import ctypes

import torch
from torch import Tensor

from gptj_batch.engine.cpu_kernels.build import ELEMENTS, KernelsUnavailable, load_library


def best(logits: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return each row's likeliest token, the first of equals, and whether the row is finite throughout.

    One pass over the logits, five times as fast as torch's `max` and `amin` in bfloat16. None where the kernels do not
    know the dtype or device, or cannot be built.

    logits: (S, V)    returns: (S,), int64, and (S,), bool
    """
    if logits.device.type != "cpu" or logits.dtype not in ELEMENTS or not logits.is_contiguous():
        return None
    try:
        library = load_library(logits.dtype)
    except KernelsUnavailable:
        return None
    token_ids = torch.empty(len(logits), dtype=torch.int64)
    is_finite = torch.empty(len(logits), dtype=torch.bool)
    library.gptj_best(
        ctypes.c_void_p(logits.data_ptr()),
        *map(ctypes.c_int64, logits.shape),
        ctypes.c_void_p(token_ids.data_ptr()),
        ctypes.c_void_p(is_finite.data_ptr()),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return token_ids, is_finite
