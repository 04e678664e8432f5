"""first_layers: the model up to one of its layers, for requests that want what stands there.

Shape letters: see gptj_batch.engine.
"""

import torch.nn.functional as F
from torch import Tensor

from gptj_batch.engine.padding import padded_size
from gptj_batch.model import GPTJModel
from gptj_batch.model.attention import Attend
from gptj_batch.model.rotary import angles


def encode_first_layers(
    body: GPTJModel, num_layers: int, token_ids: Tensor, positions: Tensor, attend: Attend
) -> Tensor:
    """Run packed tokens through the first `num_layers` blocks, without the final norm, padded as `encode` pads.

    token_ids, positions: (T,), int64    attend: leaves tokens behind its last row alone
    returns: (T, E), which transformers calls hidden_states[num_layers]
    """
    num_tokens = len(token_ids)
    num_padding = padded_size(num_tokens) - num_tokens if token_ids.device.type == "cpu" else 0
    hidden: Tensor = body.wte(F.pad(token_ids, (0, num_padding)))
    cos, sin = angles(F.pad(positions, (0, num_padding)), body.config.rotary_dim)
    for layer, block in zip(range(num_layers), body.h, strict=False):
        hidden = block(hidden, cos, sin, layer, attend)
    return hidden[:num_tokens]
