"""read_body: the model for rows of which a head reads only some tokens.

Shape letters: see gptj_batch.engine. Here S is the tokens that are read.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor

from gptj_batch.engine.padding import padded_size
from gptj_batch.model import GPTJModel
from gptj_batch.model.attention import Attend
from gptj_batch.model.block import GPTJBlock
from gptj_batch.model.rotary import angles


def encode_read(
    body: GPTJModel, num_layers: int | None, token_ids: Tensor, positions: Tensor, read: Tensor, attend: Attend
) -> Tensor:
    """Run packed tokens through the first `num_layers` blocks, or through all of them and the final norm (None).

    Of the last block's tokens that are not read, others need the keys and values and nothing else: their output
    projection and feed-forward half, three quarters of a block's work, are left out (9 % of all with 8 layers and few
    tokens read). Shapes are padded as `padding.encode` does, for its reason.

    token_ids, positions: (T,), int64    read: (S,), int64    attend: leaves tokens behind its last row alone
    returns: (S, E), which transformers calls hidden_states[num_layers]
    """
    num_read, on_cpu = len(read), token_ids.device.type == "cpu"
    token_ids, positions, read = (_padded(x) if on_cpu else x for x in (token_ids, positions, read))
    hidden: Tensor = body.wte(token_ids)
    cos, sin = angles(positions, body.config.rotary_dim)
    blocks = [cast(GPTJBlock, block) for block in body.h][:num_layers]
    for layer, block in enumerate(blocks[:-1]):
        hidden = block(hidden, cos, sin, layer, attend)
    if not blocks:
        return hidden[read[:num_read]]
    normed = blocks[-1].ln_1(hidden)
    mixed = blocks[-1].attn(normed, cos, sin, len(blocks) - 1, _ReadAttend(attend, read))
    hidden = mixed + blocks[-1].mlp(normed[read]) + hidden[read]
    return (body.ln_f(hidden) if num_layers is None else hidden)[:num_read]


class _ReadAttend:
    """Keep only the tokens that are read of what another `Attend` returns."""

    def __init__(self, attend: Attend, read: Tensor) -> None:
        self._attend = attend
        self._read = read

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self._attend(layer, query, key, value)[self._read]


def _padded(indices: Tensor) -> Tensor:
    return F.pad(indices, (0, padded_size(len(indices)) - len(indices)))
