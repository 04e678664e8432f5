import pytest
import torch

from gptj_batch.model import GPTJConfig, GPTJForCausalLM
from pipelines.sizes import ModelSizes

SMALL = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 50, "rotary_dim": 8, "n_positions": 64}


@pytest.mark.parametrize("inner", [None, 48])
def test_parameters_are_those_of_the_model(inner: int | None) -> None:
    config = {**SMALL, "n_inner": inner}
    model = GPTJForCausalLM(GPTJConfig(**config))
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert ModelSizes.of(config).parameters == expected


def test_gpt_j_6b_in_fp16_takes_what_its_checkpoint_takes() -> None:
    sizes = ModelSizes.of({})
    assert sizes.parameters == 6_050_882_784  # as EleutherAI/gpt-j-6B counts them
    assert sizes.weight_bytes("float16") / 2**30 == pytest.approx(11.27, abs=0.01)
    assert sizes.cache_bytes_per_token("float16") == 2 * 28 * 4096 * 2


def test_operations_are_two_a_parameter_and_attention() -> None:
    sizes = ModelSizes.of(SMALL)
    assert sizes.operations(1, 0, 0) == 2 * sizes.body_parameters
    assert sizes.operations(1, 1, 0) == 2 * (sizes.body_parameters + sizes.head_parameters)
    assert sizes.operations(10, 0, 7) - sizes.operations(10, 0, 0) == 4 * 3 * 32 * 7 * 10


def test_int8_weights_have_a_cache_of_two_bytes() -> None:
    sizes = ModelSizes.of(SMALL)
    assert sizes.cache_bytes_per_token("int8") == sizes.cache_bytes_per_token(str(torch.bfloat16).split(".")[1])
