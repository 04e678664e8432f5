"""Products with packed weights, by the C++ kernels.

Shape letters: see gptj_batch.engine. Here K is a layer's input width, O its output width.
"""

import ctypes
import threading
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from gptj_batch.engine.cpu_kernels.build import load_library
from gptj_batch.engine.cpu_kernels.call import address_of

TILE: Final = 16  # outputs that stand together; TILE and DEPTH in the kernels are the same
DEPTH: Final = 256  # inputs of a tile that stand together


_LOCAL: Final = threading.local()


def _room(*sizes: int) -> tuple[Tensor, ...]:
    """Return room for so many floats each, the same to every call of a thread; it stays as large as the largest needed.

    Memory that comes from the system anew costs a page fault for each 4 KiB: a tenth of a product's time.
    """
    if sum(sizes) > getattr(_LOCAL, "size", -1):
        _LOCAL.size, _LOCAL.room = sum(sizes), torch.empty(sum(sizes))
    parts: tuple[Tensor, ...] = _LOCAL.room[: sum(sizes)].split(list(sizes))
    return parts


class PackedMatrix:
    """Weights in the order in which the kernel reads them: for each DEPTH inputs, for each tile, (input, output)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: (O, K), float32 or bfloat16    bias: (O,)."""
        self._num_outputs, self._num_inputs = weight.shape
        self._num_missing = -self._num_outputs % TILE
        bias = weight.new_zeros(self._num_outputs) if bias is None else bias
        self._bias = F.pad(bias.float(), (0, self._num_missing))
        padded = F.pad(weight, (0, 0, 0, self._num_missing))
        self._packed = torch.empty(padded.numel(), dtype=weight.dtype)
        for panels, inputs in zip(self._panels(), padded.split(DEPTH, 1), strict=True):
            panels.copy_(inputs.unflatten(0, (-1, TILE)).transpose(1, 2))

    def multiply(self, x: Tensor, plus: Tensor | None, *, with_gelu: bool) -> Tensor:
        """Return x @ weight.T + bias, by GELU where asked for, plus `plus`, rounded once.

        x: (T, K)    plus: (T, O)    returns: (T, O)
        """
        x = x.contiguous()
        if plus is not None:
            plus = (F.pad(plus, (0, self._num_missing)) if self._num_missing else plus).contiguous()
        assert x.dtype == self._packed.dtype and x.shape[1] == self._num_inputs
        result = torch.empty(len(x), len(self._bias), dtype=x.dtype)
        groups, sums = _room(x.numel(), 0 if x.dtype == torch.float32 else result.numel())
        load_library(x.dtype).gptj_multiply(
            *map(address_of, (x, self._packed, self._bias, plus)),
            ctypes.c_int32(with_gelu),
            *map(ctypes.c_int64, (*x.shape, len(self._bias))),
            *map(address_of, (groups, sums if len(sums) else result, result)),
            ctypes.c_int32(torch.get_num_threads()),
        )
        return result[:, : self._num_outputs].contiguous()

    def outputs(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and bias of some outputs, in float32. places: (any,)    returns: (any, K), (any,)."""
        weights = [panels[places // TILE, :, places % TILE] for panels in self._panels()]
        return torch.cat(weights, 1).float(), self._bias[places]

    def _panels(self) -> list[Tensor]:
        """Return views of what is packed: (O / TILE, at most DEPTH, TILE) each."""
        tiles = len(self._bias) // TILE
        depths = [min(DEPTH, self._num_inputs - first) for first in range(0, self._num_inputs, DEPTH)]
        parts = self._packed.split([tiles * depth * TILE for depth in depths])
        return [part.view(tiles, depth, TILE) for part, depth in zip(parts, depths, strict=True)]
