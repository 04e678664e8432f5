"""Rows to 8 bits and back, by the C++ kernels.

Shape letters: see gptj_batch.engine. Here K is a layer's input width, O its output width.
"""

import ctypes

import torch
from torch import Tensor

from gptj_batch.engine.cpu_kernels.build import load_library
from gptj_batch.engine.cpu_kernels.call import address_of


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row as whole numbers from 1 to 255 around 128, and its scale: x is about scale * (number - 128).

    x: (T, K), float32 or bfloat16    returns: (T, K), uint8, and (T,), float32
    """
    x = x.contiguous()
    numbers, scales = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x), dtype=torch.float32)
    load_library(x.dtype).gptj_quantize(
        address_of(x),
        *map(ctypes.c_int64, x.shape),
        address_of(numbers),
        address_of(scales),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return numbers, scales


def finish(
    product: Tensor, scales: Tensor, bias: Tensor, dtype: torch.dtype, plus: Tensor | None, *, with_gelu: bool
) -> Tensor:
    """Return product * scale + bias, by GELU where asked for, and plus `plus`, rounded once.

    product: (T, O), float32    scales: (T,)    bias: (O,), float32    plus: (T, O), dtype    returns: (T, O), dtype
    """
    plus = None if plus is None else plus.contiguous()
    finished = torch.empty(product.shape, dtype=dtype)
    load_library(dtype).gptj_finish(
        address_of(product),
        address_of(scales),
        address_of(bias),
        address_of(plus),
        ctypes.c_int32(with_gelu),
        *map(ctypes.c_int64, product.shape),
        address_of(finished),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return finished
