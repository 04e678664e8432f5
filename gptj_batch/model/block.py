"""One GPT-J block: attention and feed-forward side by side behind one layer norm.

Shape letters: see gptj_batch.model.rotary.
"""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptj_batch.model.attention import Attend
from gptj_batch.model.config import GPTJConfig
from gptj_batch.model.rotary import rotate


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATION_FUNCTIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "gelu_new": _gelu_new,
}


class GPTJAttention(nn.Module):
    """Project to queries, keys and values, rotate, attend, project back. No biases."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.head_shape = (config.n_head, config.head_dim)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, attend: Attend) -> Tensor:
        """Mix tokens.

        x: (T, E)    cos, sin: (T, R // 2), float32    returns: (T, E)
        """
        query = rotate(self.q_proj(x).unflatten(-1, self.head_shape), cos, sin)
        key = rotate(self.k_proj(x).unflatten(-1, self.head_shape), cos, sin)
        value = self.v_proj(x).unflatten(-1, self.head_shape)
        mixed = attend(layer, query, key, value)
        output: Tensor = self.resid_dropout(self.out_proj(mixed.flatten(-2)))
        return output


class GPTJMLP(nn.Module):
    """The feed-forward half: widen to F, activate, narrow back."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(config.n_embd, config.inner_dim)
        self.fc_out = nn.Linear(config.inner_dim, config.n_embd)
        self.activation = ACTIVATION_FUNCTIONS[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself.

        x: (T, E)    returns: (T, E)
        """
        output: Tensor = self.dropout(self.fc_out(self.activation(self.fc_in(x))))
        return output


class GPTJBlock(nn.Module):
    """x + attention(norm(x)) + mlp(norm(x)): GPT-J's parallel form, one norm for both."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPTJAttention(config)
        self.mlp = GPTJMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, attend: Attend) -> Tensor:
        """Run one layer.

        x: (T, E)    cos, sin: (T, R // 2), float32    returns: (T, E)
        """
        normed = self.ln_1(x)
        output: Tensor = self.attn(normed, cos, sin, layer, attend) + self.mlp(normed) + x
        return output
