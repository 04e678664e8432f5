"""Every kind of linear layer against torch's own; and packed ones against themselves, bit for bit, in any company."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptj_batch.engine.linear import (
    FUSED_ACTIVATIONS,
    PANEL_ACTIVATIONS,
    Int8Weights,
    JoinedWeights,
    LinearFactory,
    PackedWeights,
    PanelWeights,
    SharedWeights,
    is_packable,
)
from gptj_batch.engine.prepare import why_no_cpu_kernels
from gptj_batch.model import GPTJConfig, GPTJForCausalLM
from gptj_batch.model.block import ACTIVATION_FUNCTIONS

WIDTH_IN, WIDTH_OUT = 40, 56
ATOL = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
KINDS = pytest.mark.parametrize("kind", [SharedWeights, JoinedWeights, PackedWeights, PanelWeights])
OURS = pytest.mark.parametrize("kind", [PackedWeights, PanelWeights])  # one row, whatever its company
ACTIVATIONS = (None, *ACTIVATION_FUNCTIONS)
ROW_COUNTS = (1, 2, 3, 17, 64, 100)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.inference_mode():
        yield


def skip_where_not_packable(kind: type[LinearFactory], dtype: torch.dtype) -> None:
    if kind is PackedWeights and not is_packable(dtype):
        pytest.skip(f"oneDNN computes no {dtype} on this machine")
    if kind is PanelWeights and (reason := why_no_cpu_kernels(CPU, dtype, 16)):
        pytest.skip(reason)


def with_activations(*kinds: type[LinearFactory]) -> list[tuple[type[LinearFactory], str | None]]:
    """Return each kind with every activation that it has."""
    return [(kind, name) for kind in kinds for name in (PANEL_ACTIVATIONS if kind is PanelWeights else ACTIVATIONS)]


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


@DTYPES
@pytest.mark.parametrize(
    ("kind", "activation"), with_activations(SharedWeights, JoinedWeights, PackedWeights, PanelWeights)
)
@pytest.mark.parametrize("count", [1, 17])
def test_every_activation_is_applied(
    kind: type[LinearFactory], dtype: torch.dtype, activation: str | None, count: int
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
@pytest.mark.parametrize(("kind", "activation"), with_activations(PackedWeights, PanelWeights))
def test_a_packed_row_is_the_same_bit_for_bit_in_any_number_of_rows(
    kind: type[LinearFactory], dtype: torch.dtype, shape: tuple[int, int], activation: str | None
) -> None:
    skip_where_not_packable(kind, dtype)
    linear = kind().make(make_layers(dtype, shape=shape), activation)
    x, plus = rows(128, dtype, shape[0]), rows(128, dtype, shape[1], seed=2)
    together, summed = linear(x), None if activation else linear(x, plus=plus)
    for first, count in ((0, 1), (127, 1), (0, 2), (7, 3), (15, 16), (9, 17), (3, 33), (64, 64), (28, 100)):
        some = slice(first, first + count)
        assert torch.equal(linear(x[some]), together[some]), count
        if summed is not None:
            assert torch.equal(linear(x[some], plus=plus[some]), summed[some]), count


@OURS
@DTYPES
def test_more_threads_change_no_bit_of_a_packed_row(kind: type[LinearFactory], dtype: torch.dtype) -> None:
    skip_where_not_packable(kind, dtype)
    linear = kind().make(make_layers(dtype, shape=(2048, 96)))
    x = rows(34, dtype, 2048)
    expected = linear(x)
    for num_threads in (2, 16):
        torch.set_num_threads(num_threads)
        assert torch.equal(linear(x), expected)
        assert torch.equal(linear(x[:3]), expected[:3])


@OURS
@DTYPES
def test_a_row_that_is_not_finite_stays_alone(kind: type[LinearFactory], dtype: torch.dtype) -> None:
    skip_where_not_packable(kind, dtype)
    linear = kind().make(make_layers(dtype))
    x = rows(5, dtype)
    expected = linear(x)
    x[2] = torch.nan
    found = linear(x)
    assert torch.equal(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]]) and found[2].isnan().all()


@pytest.mark.parametrize(
    ("kind", "count"), [(JoinedWeights, 3), (PackedWeights, 1), (PackedWeights, 3), (PanelWeights, 3)]
)
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


@OURS
@DTYPES
def test_the_weights_of_some_outputs_can_be_had_again(kind: type[LinearFactory], dtype: torch.dtype) -> None:
    skip_where_not_packable(kind, dtype)
    (layer,) = make_layers(dtype, shape=(600, 503))
    weight, bias, places = layer.weight.clone(), layer.bias.clone(), torch.tensor([0, 17, 502, 17])
    found_weight, found_bias = kind().make([layer]).outputs(places)
    assert found_weight.dtype == found_bias.dtype == torch.float32
    assert torch.equal(found_weight, weight[places].float()) and torch.equal(found_bias, bias[places].float())


@DTYPES
@pytest.mark.parametrize("count", [1, 5, 193, 400])
@pytest.mark.parametrize("shape", [(256, 16), (257, 300), (513, 48)])
def test_our_kernel_takes_rows_and_widths_beyond_its_blocks(
    dtype: torch.dtype, count: int, shape: tuple[int, int]
) -> None:
    skip_where_not_packable(PanelWeights, dtype)
    layers, x = make_layers(dtype, shape=shape), rows(count, dtype, shape[0])
    expected = expected_of(x, layers, "gelu_new")
    assert_near(PanelWeights().make(layers, "gelu_new")(x), expected)
    assert PanelWeights().make(make_layers(dtype, shape=shape), "gelu_new")(x[:0]).shape == (0, shape[1])


@pytest.mark.filterwarnings("error")
def test_making_layers_warns_of_nothing() -> None:
    for kind in (SharedWeights, JoinedWeights, PackedWeights, PanelWeights):
        kind().make(make_layers(torch.float32, bias=False, count=3))


@DTYPES
@pytest.mark.parametrize("kind", [SharedWeights, JoinedWeights, PackedWeights, PanelWeights, Int8Weights])
def test_no_rows_give_none_in_a_thread_that_has_computed_nothing_before(
    kind: type[LinearFactory], dtype: torch.dtype
) -> None:
    skip_where_not_packable(kind, dtype)
    layer = kind().make(make_layers(dtype))
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(layer, rows(0, dtype)).result().shape == (0, WIDTH_OUT)
