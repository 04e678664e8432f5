"""Layers in 8 bits, and the kernels that bring rows there and back."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptj_batch.engine import Engine
from gptj_batch.engine.cpu_kernels.build import KernelsUnavailable, load_library
from gptj_batch.engine.cpu_kernels.int8 import finish, quantize
from gptj_batch.engine.linear import Int8Weights, saturates_in_int8
from gptj_batch.errors import ConfigError
from gptj_batch.model import GPTJForCausalLM
from gptj_batch.model.block import ACTIVATION_FUNCTIONS


@pytest.fixture(autouse=True)
def kernels() -> None:
    try:
        load_library(torch.bfloat16)
    except KernelsUnavailable as error:
        pytest.skip(f"the C++ kernels cannot be built here: {error}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 15, 16, 100])
def test_a_row_comes_back_to_within_half_a_step(width: int, dtype: torch.dtype) -> None:
    x = (torch.randn(7, width) * 10 ** torch.linspace(-3, 3, 7)[:, None]).to(dtype)
    numbers, scales = quantize(x)
    back = (numbers.float() - 128) * scales[:, None]
    assert ((back - x.float()).abs() <= 0.501 * scales[:, None]).all()
    assert numbers.min() >= 1


def test_a_row_of_zeros_stays_zero() -> None:
    numbers, scales = quantize(torch.zeros(2, 20))
    assert (numbers == 128).all() and (scales == 1).all()


@pytest.mark.parametrize("with_gelu", [False, True])
@pytest.mark.parametrize("has_plus", [False, True])
def test_finishing_scales_adds_and_activates(with_gelu: bool, has_plus: bool) -> None:
    product, scales, bias = torch.randn(5, 37) * 30, torch.rand(5), torch.randn(37)
    plus = torch.randn(5, 37) if has_plus else None
    expected = product * scales[:, None] + bias
    expected = F.gelu(expected, approximate="tanh") if with_gelu else expected
    expected = expected if plus is None else expected + plus
    found = finish(product, scales, bias, torch.float32, plus, with_gelu=with_gelu)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", [None, *ACTIVATION_FUNCTIONS])
def test_a_layer_is_near_the_exact_one_and_a_row_does_not_depend_on_the_others(activation: str | None) -> None:
    if saturates_in_int8():
        pytest.skip("this CPU cuts off large sums of 8-bit products (no VNNI); such a job is refused")
    layer = nn.Linear(96, 80)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    x = torch.randn(33, 96)
    exact = F.linear(x, weight, bias)
    exact = exact if activation is None else ACTIVATION_FUNCTIONS[activation](exact)
    small = Int8Weights().make([layer], activation)
    found = small(x)
    assert (found - exact).norm() < 0.02 * exact.norm()
    assert layer.weight.numel() == 0, "the model gave its weights up"
    if activation in (None, "gelu_new", "relu"):  # torch's other ones differ in the last bit from place to place
        for rows in (slice(0, 1), slice(4, 9), slice(32, 33)):
            assert torch.equal(found[rows], small(x[rows]))


def test_weights_can_be_read_back() -> None:
    layer = nn.Linear(70, 50)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    places = torch.tensor([49, 0, 7])
    found, found_bias = Int8Weights().make([layer]).outputs(places)
    assert torch.equal(found_bias, bias[places])
    assert (found - weight[places]).abs().max() <= 0.501 * weight.abs().max() / 127


def test_int8_is_refused_where_there_are_no_kernels_for_it(model: GPTJForCausalLM) -> None:
    half = GPTJForCausalLM(model.config).half()
    with pytest.raises(ConfigError, match=r"int8 needs the C\+\+ kernels for a CPU: they have no float16"):
        Engine(half, take_weights=True, in_int8=True)


@pytest.mark.parametrize("saturates", [False, True])
def test_int8_is_refused_where_sums_would_be_cut_off(
    model: GPTJForCausalLM, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptj_batch.engine.prepare.saturates_in_int8", lambda: saturates)
    model = GPTJForCausalLM(model.config)
    with pytest.raises(ConfigError, match="cuts off large sums") if saturates else nullcontext():
        Engine(model, take_weights=True, in_int8=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("width", "place"), [(40, 3), (40, 39), (35, 34), (16, 0)])
def test_a_row_that_is_not_finite_stays_so_and_alone(value: float, width: int, place: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, width).to(dtype)
    linear = Int8Weights().make([nn.Linear(width, 24).to(dtype)])
    expected = linear(x)
    x[1, place] = value
    x[2] = value
    found = linear(x)
    assert not found[1:3].isfinite().any()
    assert torch.equal(found[[0, 3]], expected[[0, 3]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_zeros_gives_the_bias(dtype: torch.dtype) -> None:
    layer = nn.Linear(35, 24).to(dtype)
    bias = layer.bias.detach().clone()
    found = Int8Weights().make([layer])(torch.zeros(2, 35, dtype=dtype))
    assert torch.equal(found, bias.expand(2, -1))
