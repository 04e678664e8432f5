import pytest
import torch
from torch import Tensor

from gptj_batch.model import GPTJConfig
from gptj_batch.model.block import ACTIVATION_FUNCTIONS, GPTJMLP, GPTJBlock
from gptj_batch.model.config import ACTIVATIONS
from gptj_batch.model.rotary import angles


def values_as_they_are(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value


def test_attention_and_mlp_stand_side_by_side_behind_one_norm(config: GPTJConfig) -> None:
    block = GPTJBlock(config)
    x = torch.randn(5, 16)
    cos, sin = angles(torch.arange(5), config.rotary_dim)
    normed = block.ln_1(x)
    expected = x + block.attn.out_proj(block.attn.v_proj(normed)) + block.mlp(normed)
    torch.testing.assert_close(block(x, cos, sin, 0, values_as_they_are), expected)


def test_attend_gets_rotated_queries_and_keys_per_head_and_the_layers_number(config: GPTJConfig) -> None:
    block = GPTJBlock(config)
    seen = {}

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.update(layer=layer, query=query, key=key, value=value)
        return value

    x = torch.randn(5, 16)
    block(x, *angles(torch.arange(5), config.rotary_dim), 7, attend)
    assert seen["layer"] == 7
    assert seen["query"].shape == seen["key"].shape == seen["value"].shape == (5, 2, 8)
    unrotated = block.attn.q_proj(block.ln_1(x)).view(5, 2, 8)
    torch.testing.assert_close(seen["query"][..., 4:], unrotated[..., 4:])
    torch.testing.assert_close(seen["query"][0], unrotated[0])
    assert not torch.allclose(seen["query"][1:, :, :4], unrotated[1:, :, :4])


def test_every_activation_of_the_config_has_its_function(config: GPTJConfig) -> None:
    assert tuple(ACTIVATION_FUNCTIONS) == ACTIVATIONS


@pytest.mark.parametrize(("name", "at_one"), [("relu", 1.0), ("silu", 0.731059), ("gelu", 0.841345)])
def test_an_activation_is_the_function_of_its_name(name: str, at_one: float) -> None:
    assert ACTIVATION_FUNCTIONS[name](torch.tensor(1.0)).item() == pytest.approx(at_one, abs=1e-6)


def test_gelu_new_is_the_tanh_form() -> None:
    assert ACTIVATION_FUNCTIONS["gelu_new"](torch.tensor(1.0)).item() == pytest.approx(0.841192, abs=1e-6)


def test_the_inner_width_is_four_times_the_models_or_as_given(tiny: dict[str, int]) -> None:
    assert GPTJMLP(GPTJConfig(**tiny)).fc_in.weight.shape == (64, 16)
    assert GPTJMLP(GPTJConfig(**tiny, n_inner=24)).fc_in.weight.shape == (24, 16)


def test_projections_have_no_biases(config: GPTJConfig) -> None:
    names = [name for name, _ in GPTJBlock(config).attn.named_parameters()]
    assert sorted(names) == ["k_proj.weight", "out_proj.weight", "q_proj.weight", "v_proj.weight"]
