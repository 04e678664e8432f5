"""Body against the model that it was made of."""

import gc
import weakref
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from gptj_batch.engine.body import Body, Rotated
from gptj_batch.engine.linear import (
    JoinedWeights,
    LinearFactory,
    PackedWeights,
    PanelWeights,
    SharedWeights,
    is_packable,
)
from gptj_batch.engine.padding import padded_size
from gptj_batch.engine.prepare import why_no_cpu_kernels
from gptj_batch.model import GPTJConfig, GPTJForCausalLM, GPTJForSequenceClassification
from gptj_batch.model.attention import DenseAttend
from gptj_batch.model.rotary import angles

KINDS = pytest.mark.parametrize("kind", [SharedWeights, JoinedWeights, PackedWeights, PanelWeights])


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def make_model(activation: str = "gelu_new") -> GPTJForCausalLM:
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=96,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        rotary_dim=8,
        activation_function=activation,
        initializer_range=0.2,
    )
    return GPTJForCausalLM(config).eval()


def dense() -> DenseAttend:
    return DenseAttend(batch_size=1, mask=None, cache=None, dropout=0.0, keep_weights=False)


def tokens(count: int) -> tuple[Tensor, Tensor]:
    return torch.arange(count) * 7 % 96, torch.arange(count)


class Recorder:
    """A `FusedAttend` that passes the first E channels on and notes what it was shown; padding becomes NaN."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self.seen: list[tuple[int, int]] = []
        self.only_read: list[bool] = []

    def __call__(self, layer: int, projected: Tensor, cos: Tensor, sin: Tensor, *, only_read: bool = False) -> Tensor:
        assert len(projected) == len(cos) == len(sin)
        self.seen.append((layer, len(projected)))
        self.only_read.append(only_read)
        mixed = projected[:, :32].clone()
        mixed[self._num_tokens :] = torch.nan
        return mixed


@KINDS
@pytest.mark.parametrize("num_tokens", [1, 2, 31, 33, 63])
def test_tokens_are_encoded_as_by_the_model(kind: type[LinearFactory], num_tokens: int) -> None:
    model = make_model()
    ids, positions = tokens(num_tokens)
    expected = model.transformer.encode(ids, positions, dense())
    found = Body(model, kind()).encode(ids, positions, Rotated(dense(), num_tokens, 2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [SharedWeights, JoinedWeights, PackedWeights])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "tanh"])
def test_every_activation_is_that_of_the_model(kind: type[LinearFactory], activation: str) -> None:
    model = make_model(activation)
    ids, positions = tokens(9)
    expected = model.transformer.encode(ids, positions, dense())
    found = Body(model, kind()).encode(ids, positions, Rotated(dense(), 9, 2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_positions_need_not_follow_each_other() -> None:
    model = make_model()
    ids, positions = torch.tensor([3, 4, 5, 6]), torch.tensor([0, 1, 40, 63])
    expected = model.transformer.encode(ids, positions, dense())
    found = Body(model, PackedWeights()).encode(ids, positions, Rotated(dense(), 4, 2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("read", [None, [32], [5, 0, 31, 7]])
def test_the_first_blocks_alone_give_what_the_model_has_there(num_layers: int, read: list[int] | None) -> None:
    model = make_model()
    ids, positions = tokens(33)
    trace: list[Tensor] = []
    model.transformer.run(model.transformer.wte(ids), positions, dense(), trace)
    block = model.transformer.h[1]
    cos, sin = angles(positions, 8)
    expected = [*trace, block(trace[1], cos, sin, 1, dense())][num_layers]
    rows = None if read is None else torch.tensor(read)
    found = Body(model, PackedWeights()).encode(ids, positions, Rotated(dense(), 33, 2), rows, num_layers)
    torch.testing.assert_close(found, expected if rows is None else expected[rows], atol=1e-5, rtol=0)


@KINDS
@pytest.mark.parametrize("read", [[], [0], [32, 3], list(range(33))])
def test_only_what_is_read_is_returned_and_it_is_the_same(kind: type[LinearFactory], read: list[int]) -> None:
    body = Body(make_model(), kind())
    everything = body.encode(*tokens(33), Rotated(dense(), 33, 2))
    found = body.encode(*tokens(33), Rotated(dense(), 33, 2), torch.tensor(read, dtype=torch.int64))
    torch.testing.assert_close(
        found, everything[read], atol=0 if kind in (PackedWeights, PanelWeights) else 1e-5, rtol=0
    )


@KINDS
def test_the_heads_rows_for_some_tokens_are_those_of_the_model(kind: type[LinearFactory]) -> None:
    model = make_model()
    model.lm_head.bias.normal_()
    some = torch.tensor([7, 3, 90])
    expected = model.lm_head.weight[some].clone(), model.lm_head.bias[some].clone()
    body = Body(model, kind())
    for _ in range(2):
        weight, bias = body.head_rows(some)
        assert torch.equal(weight, expected[0]) and torch.equal(bias, expected[1])


@pytest.mark.parametrize(("kind", "num_rows"), [(SharedWeights, 34), (PackedWeights, 34), (PanelWeights, 33)])
def test_layers_come_in_order_with_rows_padded_to_a_few_sizes_where_that_helps(
    kind: type[LinearFactory], num_rows: int
) -> None:
    attend = Recorder(33)
    Body(make_model(), kind()).encode(*tokens(33), attend)
    assert padded_size(33) == 34
    assert attend.seen == [(0, num_rows), (1, num_rows)]


@KINDS
@pytest.mark.parametrize(
    ("read", "num_layers", "expected"),
    [(None, None, [False, False]), ([3], None, [False, True]), ([3], 1, [True]), ([], None, [False, True])],
)
def test_attention_is_told_in_the_last_block_alone_that_some_tokens_go_unread(
    kind: type[LinearFactory], read: list[int] | None, num_layers: int | None, expected: list[bool]
) -> None:
    attend = Recorder(33)
    rows = None if read is None else torch.tensor(read, dtype=torch.int64)
    Body(make_model(), kind()).encode(*tokens(33), attend, rows, num_layers)
    assert attend.only_read == expected


@KINDS
def test_what_attention_leaves_in_rows_of_padding_does_not_matter(kind: type[LinearFactory]) -> None:
    found = Body(make_model(), kind()).encode(*tokens(33), Recorder(33))
    assert found.shape == (33, 32) and found.isfinite().all()
    whole = Body(make_model(), kind()).encode(*tokens(34), Recorder(34))
    torch.testing.assert_close(found, whole[:33], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [PackedWeights, PanelWeights])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_row_is_the_same_bit_for_bit_with_any_number_of_others(
    kind: type[LinearFactory], dtype: torch.dtype
) -> None:
    if kind is PackedWeights and not is_packable(dtype):
        pytest.skip(f"oneDNN computes no {dtype} on this machine")
    if kind is PanelWeights and (reason := why_no_cpu_kernels(torch.device("cpu"), dtype, 16)):
        pytest.skip(reason)
    body = Body(make_model().to(dtype), kind())
    together = body.encode(*tokens(63), Recorder(63))
    logits = body.project(together)
    for count in (1, 2, 17, 33):
        some = body.encode(*tokens(count), Recorder(count))
        assert torch.equal(some, together[:count])
        assert torch.equal(body.project(some), logits[:count])


class CountedLinear:
    """A packed layer that knows how many rows it multiplied."""

    def __init__(self, layers: Sequence[nn.Linear], activation: str | None) -> None:
        self._layer = PackedWeights().make(layers, activation)
        self.num_rows = 0

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        self.num_rows += len(x)
        return self._layer(x, plus)

    def outputs(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return self._layer.outputs(places)


class CountedWeights:
    """Such layers, in the order in which they were made."""

    few_sizes, rows_alone = False, True

    def __init__(self) -> None:
        self.made: list[CountedLinear] = []

    def make(self, layers: Sequence[nn.Linear], activation: str | None = None) -> CountedLinear:
        self.made.append(CountedLinear(layers, activation))
        return self.made[-1]

    def num_rows(self, block: int) -> list[int]:
        """Return the rows of a block's layers: qkv, fc_in, out_proj, fc_out."""
        return [layer.num_rows for layer in self.made[4 * block : 4 * block + 4]]


def test_the_first_block_makes_of_a_token_once_what_depends_on_it_alone() -> None:
    linears = CountedWeights()
    body = Body(make_model(), linears)
    ids, positions = torch.tensor([4, 9, 4, 4, 9]), torch.arange(5)
    first = body.encode(ids, positions, Rotated(dense(), 5, 2))
    assert linears.num_rows(0) == [2, 2, 5, 2], "two different tokens, and five outputs of attention"
    assert linears.num_rows(1) == [5] * 4
    again = body.encode(ids, positions, Rotated(dense(), 5, 2))
    assert torch.equal(again, first)
    assert linears.num_rows(0) == [2, 2, 10, 2]


def test_a_body_that_nobody_holds_is_freed_without_the_collector() -> None:
    gc.disable()
    try:
        body = Body(make_model(), PackedWeights())
        body.encode(*tokens(5), Rotated(dense(), 5, 2))
        held = weakref.ref(body)
        del body
        assert held() is None
    finally:
        gc.enable()


@KINDS
@pytest.mark.parametrize("num_rows", [1, 2, 33])
def test_rows_are_projected_as_by_the_models_head(kind: type[LinearFactory], num_rows: int) -> None:
    model = make_model()
    rows = torch.randn(num_rows, 32)
    expected = model.lm_head(rows)
    found = Body(model, kind()).project(rows)
    assert found.shape == (num_rows, 96)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_model_without_a_language_modelling_head_cannot_project() -> None:
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=96, n_positions=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=8)
    body = Body(GPTJForSequenceClassification(config).eval(), SharedWeights())
    with pytest.raises(AssertionError, match="language modelling head"):
        body.project(torch.zeros(1, 32))


def test_shared_weights_leave_the_model_as_it_was() -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Body(model, SharedWeights()).encode(*tokens(5), Recorder(5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", [JoinedWeights, PackedWeights, PanelWeights])
def test_what_is_held_in_another_form_is_not_held_twice(kind: type[LinearFactory]) -> None:
    model = make_model()
    Body(model, kind())
    block = model.transformer.h[0]
    joined = [block.attn.q_proj, block.attn.k_proj, block.attn.v_proj]
    packed = (
        [block.attn.out_proj, block.mlp.fc_in, block.mlp.fc_out, model.lm_head] if kind is not JoinedWeights else []
    )
    assert all(layer.weight.numel() == 0 for layer in (*joined, *packed))
    assert model.transformer.wte.weight.numel() > 0
