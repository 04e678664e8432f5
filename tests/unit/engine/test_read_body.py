import pytest
import torch
from torch import Tensor

from gptj_batch.engine.read_body import encode_read
from gptj_batch.model import GPTJForCausalLM
from gptj_batch.model.attention import DenseAttend

NUM_TOKENS = 33  # for which a CPU pads


def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend causally, and leave the padding alone."""
    mixed = torch.zeros_like(query)
    dense = DenseAttend(1, None, None, 0.0, False)
    mixed[:NUM_TOKENS] = dense(layer, *(x[:NUM_TOKENS] for x in (query, key, value)))
    return mixed


@pytest.mark.parametrize("num_layers", [None, 0, 1])
@pytest.mark.parametrize("read", [[0], [4, 2], list(range(NUM_TOKENS))])
@torch.inference_mode()
def test_what_is_read_is_what_the_whole_model_has_there(
    model: GPTJForCausalLM, num_layers: int | None, read: list[int]
) -> None:
    body, token_ids, positions = model.transformer, torch.arange(NUM_TOKENS) + 3, torch.arange(NUM_TOKENS)
    inputs: list[Tensor] = []
    whole = body.run(body.wte(token_ids), positions, attend, inputs)
    found = encode_read(body, num_layers, token_ids, positions, torch.tensor(read), attend)
    expected = whole if num_layers is None else inputs[num_layers]
    torch.testing.assert_close(found, expected[read], atol=1e-5, rtol=0)
