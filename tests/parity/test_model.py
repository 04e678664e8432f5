"""Our model against transformers', float32: every output, in every form that the documentation names."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from gptj_batch.model import DynamicCache

TOLERANCE = 1e-5
EVERYTHING = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}

HEAD_64_PARTIAL = {"n_embd": 128, "n_head": 2, "rotary_dim": 16}
HEAD_64_FULL = {"n_embd": 128, "n_head": 2, "rotary_dim": 64}
HEAD_256_PARTIAL = {"n_embd": 512, "n_head": 2, "rotary_dim": 64}
HEAD_256_FULL = {"n_embd": 512, "n_head": 2, "rotary_dim": 256}
INNER = {"n_inner": 40, "layer_norm_epsilon": 1e-3}
SHAPES = (HEAD_64_PARTIAL, HEAD_64_FULL, HEAD_256_PARTIAL, HEAD_256_FULL, INNER)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("batch_size", "padding"), [(1, "none"), (5, "none"), (5, "left"), (5, "right")])
def test_every_output_equals_transformers(oracle: Any, shape: dict[str, Any], batch_size: int, padding: str) -> None:
    pair = oracle.pair("GPTJForCausalLM", **shape)
    batch = oracle.tokens(batch_size, 11, padding)
    ours = pair.ours(**batch, **EVERYTHING)
    assert ours.keys() == ["logits", "past_key_values", "hidden_states", "attentions"]
    oracle.assert_equal(ours, pair.theirs(**batch, **EVERYTHING))


@torch.no_grad()
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_the_fused_attention_equals_the_one_that_returns_its_weights(oracle: Any, padding: str) -> None:
    pair = oracle.pair("GPTJModel")
    batch = oracle.tokens(5, 11, padding)
    oracle.assert_equal(pair.ours(**batch), pair.theirs(**batch))


@torch.no_grad()
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "tanh", "gelu_new"])
def test_every_activation_equals_transformers(oracle: Any, activation: str) -> None:
    pair = oracle.pair("GPTJModel", activation_function=activation)
    batch = oracle.tokens(5, 11, "right")
    oracle.assert_equal(pair.ours(**batch, **EVERYTHING), pair.theirs(**batch, **EVERYTHING))


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_left_padding_with_its_own_positions_does_not_change_the_real_tokens(
    oracle: Any, shape: dict[str, Any]
) -> None:
    pair = oracle.pair("GPTJForCausalLM", **shape)
    batch = oracle.tokens(5, 11, "left")
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    padded = pair.ours(**batch, position_ids=positions, **EVERYTHING)
    oracle.assert_equal(padded, pair.theirs(**batch, position_ids=positions, **EVERYTHING))
    alone = pair.ours(batch["input_ids"][4:, 4:])
    torch.testing.assert_close(padded.logits[4:, 4:], alone.logits, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("cut", [(4, 1, 1, 1, 4), (10, 1), (1,) * 11])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_cached_steps_equal_transformers_and_the_whole(oracle: Any, cut: tuple[int, ...], padding: str) -> None:
    pair = oracle.pair("GPTJForCausalLM", **HEAD_64_PARTIAL)
    batch = oracle.tokens(5, 11, padding)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    whole = pair.ours(**batch, position_ids=positions)
    cache, their_cache, end = None, None, 0
    for num_tokens in cut:
        start, end = end, end + num_tokens
        step = {
            "input_ids": batch["input_ids"][:, start:end],
            "attention_mask": batch["attention_mask"][:, :end],
            "position_ids": positions[:, start:end],
        }
        ours = pair.ours(**step, past_key_values=cache, **EVERYTHING)
        theirs = pair.theirs(**step, past_key_values=their_cache, **EVERYTHING)
        oracle.assert_equal(ours, theirs)
        cache, their_cache = ours.past_key_values, theirs.past_key_values
        real = batch["attention_mask"][:, start:end].bool()
        difference = (ours.logits - whole.logits[:, start:end])[real].abs()
        assert difference.numel() == 0 or difference.max() <= TOLERANCE


@torch.no_grad()
def test_without_mask_and_positions_steps_count_on_from_the_cache(oracle: Any) -> None:
    pair = oracle.pair("GPTJForCausalLM")
    input_ids = oracle.tokens(1, 9)["input_ids"]
    cache = pair.ours(input_ids[:, :6]).past_key_values
    ours = pair.ours(input_ids[:, 6:], past_key_values=cache)
    torch.testing.assert_close(ours.logits, pair.ours(input_ids).logits[:, 6:], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_cache_position_is_the_position_where_none_is_given(oracle: Any) -> None:
    pair = oracle.pair("GPTJModel")
    input_ids = oracle.tokens(5, 4)["input_ids"]
    shifted = torch.arange(7, 11)
    ours = pair.ours(input_ids, cache_position=shifted)
    oracle.assert_equal(ours, pair.theirs(input_ids, position_ids=shifted[None]))


@torch.no_grad()
def test_a_cache_of_transformers_is_taken_and_given_back(oracle: Any) -> None:
    pair = oracle.pair("GPTJModel")
    input_ids = oracle.tokens(5, 9)["input_ids"]
    cache = transformers.DynamicCache(config=pair.theirs.config)
    pair.ours(input_ids[:, :6], past_key_values=cache)
    ours = pair.ours(input_ids[:, 6:], past_key_values=cache)
    assert ours.past_key_values is cache
    theirs = pair.theirs(input_ids)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state[:, 6:], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_a_cache_is_made_kept_or_left_out_as_transformers_does(oracle: Any) -> None:
    pair = oracle.pair("GPTJModel")
    input_ids = oracle.tokens(1, 4)["input_ids"]
    assert pair.ours(input_ids, use_cache=False).past_key_values is None
    given = DynamicCache()
    assert pair.ours(input_ids, use_cache=False, past_key_values=given).past_key_values is given
    assert given.get_seq_length() == 4
    theirs = transformers.DynamicCache(config=pair.theirs.config)
    assert pair.theirs(input_ids, use_cache=False, past_key_values=theirs).past_key_values is theirs


@torch.no_grad()
@pytest.mark.parametrize("output_attentions", [False, True])
def test_a_4d_mask_is_added_to_the_scores_as_it_is(oracle: Any, output_attentions: bool) -> None:
    pair = oracle.pair("GPTJModel")
    input_ids = oracle.tokens(5, 7)["input_ids"]
    generator = torch.Generator().manual_seed(1)
    mask = torch.randn(5, 1, 7, 7, generator=generator)
    mask = mask.masked_fill(torch.rand(5, 1, 7, 7, generator=generator) < 0.4, torch.finfo(torch.float32).min)
    call = {"input_ids": input_ids, "attention_mask": mask, "output_attentions": output_attentions}
    oracle.assert_equal(pair.ours(**call), pair.theirs(**call))


@torch.no_grad()
def test_a_boolean_4d_mask_says_what_may_be_seen(oracle: Any) -> None:
    pair = oracle.pair("GPTJModel")
    batch = oracle.tokens(5, 7, "right")
    visible = batch["attention_mask"][:, None, None, :].bool() & torch.ones(7, 7, dtype=torch.bool).tril()
    ours = pair.ours(batch["input_ids"], attention_mask=visible)
    oracle.assert_equal(ours, pair.theirs(**batch))


@torch.no_grad()
@pytest.mark.parametrize("output_attentions", [False, True])
def test_packed_sequences_do_not_see_each_other(oracle: Any, output_attentions: bool) -> None:
    pair = oracle.pair("GPTJForCausalLM")
    input_ids = oracle.tokens(2, 12)["input_ids"]
    positions = torch.tensor([[*range(5), *range(4), *range(3)], [*range(2), *range(10)]])
    call = {"input_ids": input_ids, "position_ids": positions, "use_cache": False}
    ours = pair.ours(**call, output_attentions=output_attentions)
    oracle.assert_equal(ours, pair.theirs(**call, output_attentions=output_attentions))
    alone = pair.ours(input_ids[:1, 5:9])
    torch.testing.assert_close(ours.logits[:1, 5:9], alone.logits, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_one_row_of_positions_serves_the_whole_batch(oracle: Any) -> None:
    pair = oracle.pair("GPTJModel")
    input_ids = oracle.tokens(5, 6)["input_ids"]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    call = {"input_ids": input_ids, "position_ids": positions}
    for use_cache in (False, True):
        oracle.assert_equal(pair.ours(**call, use_cache=use_cache), pair.theirs(**call, use_cache=use_cache))


@torch.no_grad()
def test_embeddings_and_token_types_are_taken_as_transformers_does(oracle: Any) -> None:
    pair = oracle.pair("GPTJModel")
    batch = oracle.tokens(5, 7, "right")
    token_type_ids = (batch["input_ids"] > 40).long()
    typed = {**batch, "token_type_ids": token_type_ids}
    oracle.assert_equal(pair.ours(**typed, **EVERYTHING), pair.theirs(**typed, **EVERYTHING))
    embedded = {"inputs_embeds": torch.randn(5, 7, 128), "attention_mask": batch["attention_mask"]}
    oracle.assert_equal(pair.ours(**embedded, **EVERYTHING), pair.theirs(**embedded, **EVERYTHING))


@torch.no_grad()
@pytest.mark.parametrize("kept", [0, 1, 3, torch.tensor([0, 4, 2])])
def test_logits_to_keep_chooses_positions_as_transformers_does(oracle: Any, kept: Any) -> None:
    pair = oracle.pair("GPTJForCausalLM")
    batch = oracle.tokens(5, 7, "left")
    oracle.assert_equal(pair.ours(**batch, logits_to_keep=kept), pair.theirs(**batch, logits_to_keep=kept))


@torch.no_grad()
def test_what_the_config_asks_for_is_returned_without_asking_again(oracle: Any) -> None:
    pair = oracle.pair("GPTJForCausalLM", output_attentions=True, output_hidden_states=True, use_cache=False)
    batch = oracle.tokens(5, 7, "left")
    ours = pair.ours(**batch)
    assert ours.keys() == ["logits", "hidden_states", "attentions"]
    oracle.assert_equal(ours, pair.theirs(**batch))
    pair.ours.config.return_dict = False
    assert isinstance(pair.ours(**batch), tuple)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["halves", "unscaled", "shifted"])
def test_a_wrong_rotation_scale_or_position_would_be_seen(
    oracle: Any, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """The negative control of this file: each mistake moves the output by far more than the tolerance."""
    pair = oracle.pair("GPTJModel")
    batch = oracle.tokens(5, 7)
    fused = F.scaled_dot_product_attention
    if layout == "halves":
        monkeypatch.setattr("gptj_batch.model.block.rotate", _rotate_halves)
    elif layout == "unscaled":
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kw: fused(*args, **kw, scale=1.0))
    positions = torch.arange(7)[None] * 2 if layout == "shifted" else None
    ours = pair.ours(**batch, position_ids=positions)
    assert oracle.differences(ours, pair.theirs(**batch))["last_hidden_state"] > 1000 * TOLERANCE


def _rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    rotary_dim = 2 * cos.shape[-1]
    first, second = x[..., :rotary_dim].chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, x[..., rotary_dim:]), dim=-1)


@torch.no_grad()
def test_every_weight_matters_to_the_output(oracle: Any) -> None:
    """The other negative control: a weight read wrongly, in any tensor, would be seen."""
    pair = oracle.pair("GPTJForCausalLM")
    batch = oracle.tokens(5, 7)
    expected = pair.theirs(**batch)
    for name, parameter in pair.ours.named_parameters():
        kept = parameter.clone()
        parameter += 0.01 * torch.randn(parameter.shape)
        assert oracle.differences(pair.ours(**batch), expected)["logits"] > 10 * TOLERANCE, name
        parameter.copy_(kept)
