"""Linear layers as the engine runs them: the model's own weights, or weights packed for the device.

Shape letters: see gptj_batch.engine. Here K is a layer's input width, O its output width.
"""

from collections.abc import Sequence as Ordered
from typing import Protocol

import torch
from torch import Tensor, nn

from gptj_batch.engine.cpu_kernels.int8 import finish, quantize
from gptj_batch.engine.cpu_kernels.product import PackedMatrix
from gptj_batch.model.block import ACTIVATION_FUNCTIONS

# What oneDNN calls them: it applies them to a product's result before that leaves the registers. torch's own functions
# would not do: they compute the last few numbers of an array, wherever it ends, in another way than the rest, so that a
# row's result would depend on how many rows there are.
FUSED_ACTIVATIONS = {
    None: ("none", ""),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "tanh": ("tanh", ""),
    "gelu_new": ("gelu", "tanh"),
}


PANEL_ACTIVATIONS = (None, "gelu_new")  # what our own kernel has

UNPACKED_AT_ONCE = 64


class Linear(Protocol):
    """A product with fixed weights."""

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return activation(x @ weight.T + bias), or x @ weight.T + bias + plus where that is given.

        x: (T, K)    plus: (T, O)    returns: (T, O)
        """
        ...

    def outputs(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias of some outputs, in float32; zeros where there is no bias. It takes a while.

        places: (any,), int64    returns: (any, K), (any,)
        """
        ...


class LinearFactory(Protocol):
    """Makes the engine's layers of the model's.

    few_sizes: whether its layers should see few different numbers of rows on a CPU (see `padding`)
    rows_alone: whether a row's result is the same, bit for bit, whatever the other rows are
    """

    few_sizes: bool
    rows_alone: bool

    def make(self, layers: Ordered[nn.Linear], activation: str | None = None) -> Linear:
        """Return one layer whose outputs are those of `layers` side by side."""
        ...


class SharedWeights:
    """Layers that use the model's weights as they are: nothing is copied, and the model stays usable."""

    few_sizes = True
    rows_alone = False

    def make(self, layers: Ordered[nn.Linear], activation: str | None = None) -> Linear:
        """Return one layer; see `LinearFactory`."""
        return _SharedLinear(layers, activation)


class _SharedLinear:
    def __init__(self, layers: Ordered[nn.Linear], activation: str | None) -> None:
        self._layers = layers
        self._activation = None if activation is None else ACTIVATION_FUNCTIONS[activation]

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        outputs = [layer(x) for layer in self._layers]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        output = output if self._activation is None else self._activation(output)
        return output if plus is None else output + plus

    def outputs(self, places: Tensor) -> tuple[Tensor, Tensor]:
        (layer,) = self._layers
        return _outputs(layer.weight.detach(), layer.bias, places)


class JoinedWeights:
    """Layers whose weights stand in one matrix where they have the same input: fewer, larger products on a GPU.

    The model gives its weights up: what is joined is freed there.
    """

    few_sizes = True
    rows_alone = False

    def make(self, layers: Ordered[nn.Linear], activation: str | None = None) -> Linear:
        """Return one layer; see `LinearFactory`."""
        return _SharedLinear([_joined(layers)], activation)


class PackedWeights:
    """Layers in the order in which oneDNN reads them, with sums and activations made inside the product.

    Up to 1.5 times faster than torch's own product at few rows (engine-facts 3.2). And a row's result does not depend,
    bit for bit, on how many rows there are, as long as there are at least two (tests/unit/engine/test_linear.py).

    The model gives its weights up: what is packed is freed there.
    """

    few_sizes = True
    rows_alone = True

    def make(self, layers: Ordered[nn.Linear], activation: str | None = None) -> Linear:
        """Return one layer; see `LinearFactory`."""
        return _PackedLinear(_joined(layers), activation)


class _PackedLinear:
    def __init__(self, layer: nn.Linear, activation: str | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
        self._bias = None if layer.bias is None else layer.bias.detach()
        _release(layer)
        self._activation, self._algorithm = FUSED_ACTIVATIONS[activation]

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        # One row alone would go another way through oneDNN, and sum in another order.
        num_rows = len(x)
        if num_rows == 1:
            x = x.repeat(2, 1)
            plus = None if plus is None else plus.repeat(2, 1)
        run = torch.ops.mkldnn._linear_pointwise
        if plus is not None:
            assert self._activation == "none", "a layer has an activation or is added to something, never both"
            output: Tensor = run.binary(x, plus, self._weight, self._bias, "add")
        else:
            output = run(x, self._weight, self._bias, self._activation, [], self._algorithm)
        return output[:num_rows]

    def outputs(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return _outputs(self._weight.to_dense(), self._bias, places)


def is_packable(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN has fast products of this dtype here."""
    return torch.backends.mkldnn.is_available() and (
        dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class PanelWeights:
    """Layers for a CPU without AVX-512, multiplied by our own kernel: ahead of oneDNN there (jobs/bench/products.py).

    A row's result does not depend on the others, and any number of rows will do. It knows no activation but `gelu_new`.

    The model gives its weights up: what is packed is freed there.
    """

    few_sizes = False
    rows_alone = True

    def make(self, layers: Ordered[nn.Linear], activation: str | None = None) -> Linear:
        """Return one layer; see `LinearFactory`."""
        assert activation in PANEL_ACTIVATIONS, f"the kernel has no {activation}"
        return _PanelLinear(_joined(layers), with_gelu=activation is not None)


class _PanelLinear:
    def __init__(self, layer: nn.Linear, *, with_gelu: bool) -> None:
        self._matrix = PackedMatrix(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
        self._with_gelu = with_gelu
        _release(layer)

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        return self._matrix.multiply(x, plus, with_gelu=self._with_gelu)

    def outputs(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return self._matrix.outputs(places)


def _outputs(weight: Tensor, bias: Tensor | None, places: Tensor) -> tuple[Tensor, Tensor]:
    chosen = weight[places].float()
    return chosen, chosen.new_zeros(len(places)) if bias is None else bias.detach()[places].float()


class Int8Weights:
    """Layers with weights of 8 bits, a scale per output channel, and inputs of 8 bits, a scale per row and call.

    Up to twice as fast as bfloat16 on a CPU with VNNI, in half the memory. As every row is quantised by itself, its
    result does not depend on the others.

    The model gives its weights up: what is quantised is freed there.
    """

    few_sizes = True
    rows_alone = True

    def make(self, layers: Ordered[nn.Linear], activation: str | None = None) -> Linear:
        """Return one layer; see `LinearFactory`."""
        return _Int8Linear(_joined(layers), activation)


def saturates_in_int8() -> bool:
    """Tell whether products of 8 bits are wrong on this CPU.

    Without VNNI, oneDNN adds two products in 16 bits, which hold them only if they are small (its documentation,
    "Nuances of int8 computations"). So the largest are tried.
    """
    layer = nn.Linear(64, 16, bias=False)
    with torch.inference_mode():
        layer.weight.fill_(1.0)
        product = Int8Weights().make([layer])(torch.ones(2, 64))
    return bool((product - 64).abs().max() > 1)


class _Int8Linear:
    def __init__(self, layer: nn.Linear, activation: str | None) -> None:
        weight = layer.weight.detach().float()
        self._width = weight.shape[1]
        self._bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        _release(layer)
        self._scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        numbers = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(numbers, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._has_gelu = activation == "gelu_new"
        self._activation = None if activation is None or self._has_gelu else ACTIVATION_FUNCTIONS[activation]

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        # Unsigned inputs only: with signed ones oneDNN takes a way that is hundreds of times slower (engine-facts 3.2).
        numbers, scales = quantize(x)
        output = finish(self._multiply(numbers), scales, self._bias, x.dtype, plus, with_gelu=self._has_gelu)
        return output if self._activation is None else self._activation(output)

    def outputs(self, places: Tensor) -> tuple[Tensor, Tensor]:
        # Nothing unpacks these weights; but a one on each input in turn brings out what it is multiplied with.
        ones = torch.eye(self._width, dtype=torch.uint8) + 128
        columns = [self._multiply(some)[:, places] for some in ones.split(UNPACKED_AT_ONCE)]
        return torch.cat(columns).T, self._bias[places]

    def _multiply(self, numbers: Tensor) -> Tensor:
        """numbers: (T, K), uint8, 128 for zero    returns: (T, O), float32."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            numbers, 1.0, 128, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product


def _joined(layers: Ordered[nn.Linear]) -> nn.Linear:
    """Return one layer with the outputs of all, which are freed; one alone is returned as it is."""
    if len(layers) == 1:
        return layers[0]
    assert all(layer.bias is None for layer in layers), "only the attention's projections are joined"
    joined = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False, device="meta")
    joined.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False)
    for layer in layers:
        _release(layer)
    return joined


def _release(layer: nn.Linear) -> None:
    """Free a layer's weights, in the model that it belongs to."""
    layer.weight = nn.Parameter(layer.weight.detach().new_empty(0), requires_grad=False)
