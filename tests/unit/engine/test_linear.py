"""Every kind of linear layer against torch's own; and packed ones against themselves, bit for bit, in any company."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptj_batch.engine.linear import FUSED_ACTIVATIONS, JoinedWeights, LinearFactory, PackedWeights, SharedWeights
from gptj_batch.engine.prepare import _linears
from gptj_batch.model import GPTJConfig, GPTJForCausalLM
from gptj_batch.model.block import ACTIVATION_FUNCTIONS

WIDTH_IN, WIDTH_OUT = 40, 56
ATOL = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
KINDS = pytest.mark.parametrize("kind", [SharedWeights, JoinedWeights, PackedWeights])
ROW_COUNTS = (1, 2, 3, 17, 64, 100)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.inference_mode():
        yield


def skip_where_not_packable(kind: type[LinearFactory], dtype: torch.dtype) -> None:
    if kind is PackedWeights and not isinstance(_linears(CPU, dtype), PackedWeights):
        pytest.skip(f"oneDNN computes no {dtype} on this machine")


def make_layers(dtype: torch.dtype, *, bias: bool = True, count: int = 1, shape: Any = None) -> list[nn.Linear]:
    torch.manual_seed(0)
    width_in, width_out = shape or (WIDTH_IN, WIDTH_OUT)
    return [nn.Linear(width_in, width_out, bias=bias).to(dtype) for _ in range(count)]


def rows(count: int, dtype: torch.dtype, width: int = WIDTH_IN, seed: int = 1) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected_of(
    x: Tensor, layers: list[nn.Linear], activation: str | None = None, plus: Tensor | None = None
) -> Tensor:
    """Return what the layers give in float64; they must not have been released yet."""
    biases = [0.0 if layer.bias is None else layer.bias.double() for layer in layers]
    parts = [F.linear(x.double(), layer.weight.double()) + bias for layer, bias in zip(layers, biases, strict=True)]
    output = torch.cat(parts, -1)
    output = output if activation is None else ACTIVATION_FUNCTIONS[activation](output)
    return output if plus is None else output + plus.double()


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        found.double(), expected, atol=ATOL[found.dtype], rtol=1e-2 if found.dtype != torch.float32 else 1e-5
    )


@KINDS
@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", ROW_COUNTS)
def test_a_layer_gives_what_torchs_own_gives(
    kind: type[LinearFactory], dtype: torch.dtype, bias: bool, count: int
) -> None:
    skip_where_not_packable(kind, dtype)
    layers, x = make_layers(dtype, bias=bias), rows(count, dtype)
    plus = rows(count, dtype, WIDTH_OUT, seed=2)
    plain, summed = expected_of(x, layers), expected_of(x, layers, plus=plus)
    linear = kind().make(layers)
    assert_near(linear(x), plain)
    assert_near(linear(x, plus=plus), summed)


@KINDS
@DTYPES
@pytest.mark.parametrize("activation", list(ACTIVATION_FUNCTIONS))
@pytest.mark.parametrize("count", [1, 17])
def test_every_activation_is_applied(
    kind: type[LinearFactory], dtype: torch.dtype, activation: str, count: int
) -> None:
    skip_where_not_packable(kind, dtype)
    layers, x = make_layers(dtype), 3 * rows(count, dtype)
    expected = expected_of(x, layers, activation)
    linear = kind().make(layers, activation)
    assert linear(x).dtype == dtype
    assert_near(linear(x), expected)


def test_every_activation_that_a_model_may_have_is_fused() -> None:
    assert set(FUSED_ACTIVATIONS) - {None} == set(ACTIVATION_FUNCTIONS)


@KINDS
@DTYPES
@pytest.mark.parametrize("count", [1, 5])
def test_layers_with_the_same_input_stand_side_by_side(
    kind: type[LinearFactory], dtype: torch.dtype, count: int
) -> None:
    skip_where_not_packable(kind, dtype)
    layers, x = make_layers(dtype, bias=False, count=3), rows(count, dtype)
    expected = expected_of(x, layers)
    found = kind().make(layers)(x)
    assert found.shape == (count, 3 * WIDTH_OUT) and found.is_contiguous()
    assert_near(found, expected)


@DTYPES
@pytest.mark.parametrize("shape", [(40, 56), (128, 512), (512, 128), (96, 503), (2048, 64)])
@pytest.mark.parametrize("activation", [None, *ACTIVATION_FUNCTIONS])
def test_a_packed_row_is_the_same_bit_for_bit_in_any_number_of_rows(
    dtype: torch.dtype, shape: tuple[int, int], activation: str | None
) -> None:
    skip_where_not_packable(PackedWeights, dtype)
    linear = PackedWeights().make(make_layers(dtype, shape=shape), activation)
    x, plus = rows(128, dtype, shape[0]), rows(128, dtype, shape[1], seed=2)
    together, summed = linear(x), None if activation else linear(x, plus=plus)
    for first, count in ((0, 1), (127, 1), (0, 2), (7, 3), (15, 16), (9, 17), (3, 33), (64, 64), (28, 100)):
        some = slice(first, first + count)
        assert torch.equal(linear(x[some]), together[some]), count
        if summed is not None:
            assert torch.equal(linear(x[some], plus=plus[some]), summed[some]), count


@DTYPES
def test_more_threads_change_no_bit_of_a_packed_row(dtype: torch.dtype) -> None:
    skip_where_not_packable(PackedWeights, dtype)
    linear = PackedWeights().make(make_layers(dtype, shape=(2048, 96)))
    x = rows(34, dtype, 2048)
    expected = linear(x)
    for num_threads in (2, 16):
        torch.set_num_threads(num_threads)
        assert torch.equal(linear(x), expected)
        assert torch.equal(linear(x[:3]), expected[:3])


@DTYPES
def test_a_row_that_is_not_finite_stays_alone(dtype: torch.dtype) -> None:
    skip_where_not_packable(PackedWeights, dtype)
    linear = PackedWeights().make(make_layers(dtype))
    x = rows(5, dtype)
    expected = linear(x)
    x[2] = torch.nan
    found = linear(x)
    assert torch.equal(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]]) and found[2].isnan().all()


@pytest.mark.parametrize(("kind", "count"), [(JoinedWeights, 3), (PackedWeights, 1), (PackedWeights, 3)])
def test_weights_that_are_held_in_another_form_are_freed_in_the_model(kind: type[LinearFactory], count: int) -> None:
    layers = make_layers(torch.float32, bias=False, count=count)
    kind().make(layers)
    assert [layer.weight.untyped_storage().nbytes() for layer in layers] == [0] * count


def test_weights_that_are_shared_stay_in_the_model() -> None:
    layers = make_layers(torch.float32, bias=False, count=3)
    SharedWeights().make(layers)
    assert all(layer.weight.shape == (WIDTH_OUT, WIDTH_IN) for layer in layers)


def test_an_embedding_that_the_head_is_tied_to_keeps_its_weights() -> None:
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=61, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, tie_word_embeddings=True)
    model = GPTJForCausalLM(config)
    assert model.lm_head.weight is model.transformer.wte.weight
    x, before = rows(3, torch.float32, 32), model.transformer.wte.weight.clone()
    expected = model.lm_head(x)
    found = PackedWeights().make([model.lm_head])(x)
    assert_near(found, expected.double())
    assert torch.equal(model.transformer.wte.weight, before)


@pytest.mark.filterwarnings("error")
def test_making_layers_warns_of_nothing() -> None:
    for kind in (SharedWeights, JoinedWeights, PackedWeights):
        kind().make(make_layers(torch.float32, bias=False, count=3))
