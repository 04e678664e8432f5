"""Rows to 8 bits and back, by the C++ kernels.

Shape letters: see gptj_batch.engine. Here K is a layer's input width, O its output width.
"""

import ctypes

import torch
from torch import Tensor

from gptj_batch.engine.cpu_kernels.build import load_library


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row as whole numbers from 1 to 255 around 128, and its scale: x is about scale * (number - 128).

    x: (T, K), float32 or bfloat16    returns: (T, K), uint8, and (T,), float32
    """
    x = x.contiguous()
    numbers, scales = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x), dtype=torch.float32)
    load_library(x.dtype).gptj_quantize(
        _address(x),
        *map(ctypes.c_int64, x.shape),
        _address(numbers),
        _address(scales),
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
        _address(product),
        _address(scales),
        _address(bias),
        _address(plus),
        ctypes.c_int32(with_gelu),
        *map(ctypes.c_int64, product.shape),
        _address(finished),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return finished


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
