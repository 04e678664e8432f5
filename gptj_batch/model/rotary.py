"""Rotary position embedding, GPT-J layout: channel pairs (0, 1), (2, 3), ... of the first R channels.

Shape letters used in gptj_batch.model:
    B batch   S sequence   T tokens in the packed batch (T = B * S where a batch is dense)
    E model width   F feed-forward width   H heads   D channels per head   R rotary channels (R <= D)
    K keys seen, past and present   V vocabulary   L layers   C labels
"""

import torch
from torch import Tensor

BASE = 10000.0


def angles(positions: Tensor, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine of every token's angles (Su et al. 2021, RoFormer, eq. 15).

    positions: (T,), int64    returns: two of (T, R // 2), float32
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64, device=positions.device) / rotary_dim
    phase = positions.float()[:, None] * (1.0 / BASE**exponents)
    return phase.cos(), phase.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R channels of every head by its token's angle; pass the rest through.

    The rotation is computed in float32 whatever the dtype of x, and rounded once.

    x: (T, H, D)    cos, sin: (T, R // 2), float32    returns: (T, H, D), dtype of x
    """
    rotary_dim = 2 * cos.shape[-1]
    pairs = x[..., :rotary_dim].float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)
    if rotary_dim == x.shape[-1]:
        return rotated
    return torch.cat((rotated, x[..., rotary_dim:]), dim=-1)
