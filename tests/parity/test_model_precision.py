"""float16 and bfloat16 against the float32 reference, within a bound derived from the number of roundings.

One rounding to a format of unit roundoff u (2^-11 for float16, 2^-8 for bfloat16) has a relative error spread evenly
over -u .. u, so of root mean square u / sqrt(3). Products are summed in float32 and rounded once. On the longest way
from a token to its logits the following are rounded:

    the embedding                                                                        1
    in each layer: norm, weight of a projection, its result, rotation, probabilities,
        mixed values, weight of out_proj, its result, and the two sums of the residual  10
    final norm, weight of the head, logits                                               3

Layer norms keep the branches at gain one, and the errors are independent, so N = 10 n_layer + 4 of them add up like a
random walk: the logits' relative error, in root mean square, is at most sqrt(N / 3) u. Rotating in the low precision,
as transformers does, adds roundings that ours does not have: our error may not be more than 1.5 times theirs.
"""

import math
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import gptj_batch.model

UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SHAPES = ({"n_embd": 128, "n_head": 2, "rotary_dim": 16}, {"n_embd": 512, "n_head": 2, "rotary_dim": 256})
WORSE_THAN_THEIRS = 1.5


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the error, relative to that of the values."""
    return float((found.float() - expected).norm() / expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_low_precision_is_as_near_to_float32_as_its_roundings_allow(
    oracle: Any, dtype: torch.dtype, shape: dict[str, Any], padding: str
) -> None:
    pair = oracle.pair("GPTJForCausalLM", n_layer=4, **shape)
    ours = gptj_batch.model.GPTJForCausalLM.from_pretrained(pair.folder, dtype=dtype)
    theirs = transformers.GPTJForCausalLM.from_pretrained(pair.folder, dtype=dtype)
    batch = oracle.tokens(5, 24, padding)
    real = batch["attention_mask"].bool()
    expected = pair.theirs(**batch).logits[real]
    our_error = relative_error(ours(**batch).logits[real], expected)
    assert our_error <= math.sqrt((10 * 4 + 4) / 3) * UNIT_ROUNDOFF[dtype]
    assert our_error <= WORSE_THAN_THEIRS * relative_error(theirs(**batch).logits[real], expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_cached_steps_in_low_precision_keep_the_same_bound(oracle: Any, dtype: torch.dtype) -> None:
    pair = oracle.pair("GPTJForCausalLM", n_layer=4)
    ours = gptj_batch.model.GPTJForCausalLM.from_pretrained(pair.folder, dtype=dtype)
    input_ids = oracle.tokens(5, 16)["input_ids"]
    cache = ours(input_ids[:, :8]).past_key_values
    steps = [ours(input_ids[:, end : end + 1], past_key_values=cache).logits for end in range(8, 16)]
    expected = pair.theirs(input_ids).logits[:, 8:]
    assert cache.layers[0].keys.dtype == dtype
    bound = math.sqrt((10 * 4 + 4) / 3) * UNIT_ROUNDOFF[dtype]
    assert relative_error(torch.cat(steps, dim=1), expected) <= bound


@torch.no_grad()
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
@pytest.mark.parametrize("output_attentions", [False, True])
def test_padding_that_sees_nothing_stays_finite_in_low_precision(
    oracle: Any, dtype: torch.dtype, output_attentions: bool
) -> None:
    pair = oracle.pair("GPTJModel")
    ours = gptj_batch.model.GPTJModel.from_pretrained(pair.folder, dtype=dtype)
    batch = oracle.tokens(5, 9, "left")
    visible = batch["attention_mask"][:, None, None, :].bool() & torch.ones(9, 9, dtype=torch.bool).tril()
    hidden = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    for mask in (batch["attention_mask"], hidden):
        states = ours(batch["input_ids"], attention_mask=mask, output_attentions=output_attentions)
        assert bool(states.last_hidden_state.isfinite().all())


@torch.no_grad()
def test_rotating_by_angles_of_low_precision_would_be_seen(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: angles counted in bfloat16, a known mistake, go past the bound from position 257 on."""
    pair = oracle.pair("GPTJForCausalLM", n_layer=4, n_positions=512)
    ours = gptj_batch.model.GPTJForCausalLM.from_pretrained(pair.folder, dtype=torch.bfloat16)
    input_ids = oracle.tokens(1, 8)["input_ids"]
    positions = torch.arange(401, 409)[None]
    expected = pair.theirs(input_ids, position_ids=positions).logits
    bound = math.sqrt((10 * 4 + 4) / 3) * UNIT_ROUNDOFF[torch.bfloat16]
    assert relative_error(ours(input_ids, position_ids=positions).logits, expected) <= bound
    rounded = positions.bfloat16()
    monkeypatch.setattr(ours.transformer, "_positions", lambda *args: (rounded, None))
    assert relative_error(ours(input_ids, position_ids=positions).logits, expected) > bound
