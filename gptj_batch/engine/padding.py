"""Padding of a step's shapes to a few sizes, on a CPU.

oneDNN, which computes torch's bfloat16 products, keeps a compiled kernel with its scratch memory for each of the last
1,024 shapes that it saw, and a packed step has a new number of tokens nearly every time. Rounding up costs at most a
sixteenth more rows in the linear layers, none below 32, and at most a quarter in decoding attention.

Shape letters: see gptj_batch.engine.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gptj_batch.model import GPTJModel
from gptj_batch.model.attention import Attend

STEPS_PER_OCTAVE = 16
ATTENTION_STEPS_PER_OCTAVE = 4  # rows and widths make a shape together, so each must have fewer sizes


def padded_size(size: int, steps_per_octave: int = STEPS_PER_OCTAVE) -> int:
    """Return the smallest allowed size of at least `size`: between two powers of two there are so many."""
    step = max(1, (1 << (max(size, 1) - 1).bit_length()) // 2 // steps_per_octave)
    return -(-size // step) * step


def encode(body: GPTJModel, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """Run packed tokens through the model as `GPTJModel.encode` does, padded where the device wants it.

    token_ids, positions: (T,), int64    returns: (T, E)
    """
    num_tokens = len(token_ids)
    num_padding = padded_size(num_tokens) - num_tokens
    if num_padding == 0 or token_ids.device.type != "cpu":
        return body.encode(token_ids, positions, attend)
    padded = _PaddedAttend(attend, num_tokens, num_padding)
    return body.encode(F.pad(token_ids, (0, num_padding)), F.pad(positions, (0, num_padding)), padded)[:num_tokens]


def project(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Apply a linear layer to rows, padded where the device wants it.

    rows: (S, E)    returns: (S, out)
    """
    num_padding = padded_size(len(rows)) - len(rows)
    if num_padding == 0 or rows.device.type != "cpu":
        return layer(rows)  # type: ignore[no-any-return]
    return layer(F.pad(rows, (0, 0, 0, num_padding)))[: len(rows)]  # type: ignore[no-any-return]


class _PaddedAttend:
    """Keep the padding from an `Attend`: it has no keys and values, and gets zeros."""

    def __init__(self, attend: Attend, num_tokens: int, num_padding: int) -> None:
        self._attend = attend
        self._num_tokens = num_tokens
        self._num_padding = num_padding

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = self._attend(layer, *(x[: self._num_tokens] for x in (query, key, value)))
        return F.pad(mixed, (0, 0, 0, 0, 0, self._num_padding))
