import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gptj_batch.model import GPTJConfig, GPTJModel

DOCUMENTED = [
    *("input_ids", "past_key_values", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "cache_position"),
]


@pytest.fixture
def model(config: GPTJConfig) -> GPTJModel:
    return GPTJModel(config).eval()


def test_the_arguments_and_their_order_are_those_of_the_documentation() -> None:
    parameters = list(inspect.signature(GPTJModel.forward).parameters.values())[1:]
    assert [p.name for p in parameters] == DOCUMENTED
    assert {p.default for p in parameters} == {None}


@pytest.mark.parametrize("given", [{}, {"input_ids": torch.tensor([[1]]), "inputs_embeds": torch.zeros(1, 1, 16)}])
def test_exactly_one_kind_of_input_is_taken(model: GPTJModel, given: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**given)


@torch.no_grad()
def test_embeddings_stand_for_their_tokens(model: GPTJModel) -> None:
    input_ids = torch.randint(0, 31, (2, 5))
    embedded = model(inputs_embeds=model.get_input_embeddings()(input_ids))
    torch.testing.assert_close(embedded[0], model(input_ids)[0])


@torch.no_grad()
def test_hidden_states_are_one_for_the_embedding_and_one_for_every_layer(model: GPTJModel) -> None:
    input_ids = torch.randint(0, 31, (2, 5))
    output = model(input_ids, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 5, 16)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 2, 5, 5)] * 2
    assert torch.equal(output.hidden_states[0], model.wte(input_ids))
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert output.past_key_values.get_seq_length() == 5


@torch.no_grad()
def test_a_row_does_not_depend_on_the_rows_beside_it(model: GPTJModel) -> None:
    input_ids = torch.randint(0, 31, (4, 6))
    together = model(input_ids).last_hidden_state
    for row in range(4):
        alone = model(input_ids[row : row + 1]).last_hidden_state
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_token_does_not_see_what_follows(model: GPTJModel) -> None:
    input_ids = torch.randint(0, 31, (1, 6))
    changed = input_ids.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 31
    before, after = model(input_ids)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amin(dim=(0, 2)).max() > 0


@torch.no_grad()
def test_packed_tokens_give_what_a_padded_batch_gives(model: GPTJModel) -> None:
    """`encode` is the engine's way in, `forward` the documented one; an `Attend` is all that tells them apart."""
    input_ids = torch.randint(0, 31, (2, 5))

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads_first = (x.view(2, 5, 2, 8).transpose(1, 2) for x in (query, key, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
        return mixed.transpose(1, 2).flatten(0, 1)

    packed = model.encode(input_ids.flatten(), torch.arange(5).repeat(2), attend)
    torch.testing.assert_close(packed.view(2, 5, 16), model(input_ids).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize(
    "call",
    [
        lambda model: model(torch.zeros(1, 17, dtype=torch.long)),
        lambda model: model(torch.zeros(1, 2, dtype=torch.long), position_ids=torch.tensor([[15, 16]])),
        lambda model: model(torch.zeros(1, 2, dtype=torch.long), position_ids=torch.tensor([[-1, 0]])),
        lambda model: model(
            torch.zeros(1, 1, dtype=torch.long),
            past_key_values=model(torch.zeros(1, 16, dtype=torch.long)).past_key_values,
        ),
    ],
)
def test_positions_that_the_model_does_not_have_are_refused(model: GPTJModel, call: Callable[[GPTJModel], Any]) -> None:
    with pytest.raises(ValueError, match="n_positions"):
        call(model)


@torch.no_grad()
def test_the_last_position_of_all_is_still_taken(model: GPTJModel) -> None:
    assert model(torch.zeros(1, 16, dtype=torch.long)).last_hidden_state.shape == (1, 16, 16)


@torch.no_grad()
def test_dropout_acts_in_training_only(tiny: dict[str, Any]) -> None:
    input_ids = torch.randint(0, 31, (2, 5))
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        model = GPTJModel(GPTJConfig(**tiny, **{name: 0.5}))
        assert not torch.equal(model(input_ids)[0], model(input_ids)[0])
        model.eval()
        assert torch.equal(model(input_ids)[0], model(input_ids)[0])


def test_initial_weights_spread_as_the_config_says(tiny: dict[str, Any]) -> None:
    model = GPTJModel(GPTJConfig(**{**tiny, "n_embd": 64, "vocab_size": 500}, initializer_range=0.1))
    assert model.wte.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert model.h[0].mlp.fc_in.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert not model.h[0].mlp.fc_in.bias.any()
    assert torch.equal(model.ln_f.weight, torch.ones(64))


def test_parameters_are_counted_and_tell_dtype_and_device(model: GPTJModel) -> None:
    per_layer = 2 * 16 + 4 * 16 * 16 + (16 * 64 + 64) + (64 * 16 + 16)
    assert model.num_parameters() == 31 * 16 + 2 * per_layer + 2 * 16
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    model.set_input_embeddings(torch.nn.Embedding(40, 16))
    assert model.wte.weight.shape == (40, 16)
