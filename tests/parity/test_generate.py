"""Our generate, which runs the engine, against transformers': token for token where nothing is drawn."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gptj_batch.errors import BackendError

PAD = 0


def padded_left(oracle: Any, batch_size: int, num_tokens: int) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = oracle.tokens(batch_size, num_tokens, "left")
    return batch


@pytest.fixture
def pair(oracle: Any) -> Any:
    return oracle.pair("GPTJForCausalLM", n_layer=3, n_positions=96, eos_token_id=None, bos_token_id=None)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("limit", [{"max_new_tokens": 40}, {"max_length": 20}, {}])
def test_greedy_tokens_equal_transformers(oracle: Any, pair: Any, batch_size: int, limit: dict[str, int]) -> None:
    batch = padded_left(oracle, batch_size, 11)
    ours = pair.ours.generate(**batch, **limit)
    theirs = pair.theirs.generate(**batch, **limit, do_sample=False)
    assert ours.dtype == torch.int64
    assert ours.tolist() == theirs.tolist()


def test_rows_end_at_their_own_end_token_and_are_filled(oracle: Any, pair: Any) -> None:
    batch = padded_left(oracle, 5, 11)
    free = pair.ours.generate(**batch, max_new_tokens=30)[:, 11:]
    eos = [int(free[1, 4]), int(free[3, 9])]
    settings = {"max_new_tokens": 30, "eos_token_id": eos, "pad_token_id": PAD}
    ours = pair.ours.generate(**batch, **settings)
    assert ours.tolist() == pair.theirs.generate(**batch, **settings, do_sample=False).tolist()
    assert bool((ours[1, 16:] == PAD).all())
    without_pad = {**settings, "pad_token_id": None}
    theirs = pair.theirs.generate(**batch, **without_pad, do_sample=False)
    assert pair.ours.generate(**batch, **without_pad).tolist() == theirs.tolist()


def test_the_output_is_only_as_wide_as_its_longest_row(oracle: Any, pair: Any) -> None:
    batch = padded_left(oracle, 1, 11)
    eos = int(pair.ours.generate(**batch, max_new_tokens=8)[0, 14])
    ours = pair.ours.generate(**batch, max_new_tokens=30, eos_token_id=eos)
    assert ours.tolist() == pair.theirs.generate(**batch, max_new_tokens=30, eos_token_id=eos).tolist()
    assert ours.shape[1] <= 15


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.3}, {"min_new_tokens": 12}])
def test_penalty_and_minimum_equal_transformers(oracle: Any, pair: Any, settings: dict[str, Any]) -> None:
    # Without padding: transformers penalises the pad token for standing in the prompt, which a row cannot help.
    input_ids = oracle.tokens(5, 11)["input_ids"]
    eos = int(pair.ours.generate(input_ids, max_new_tokens=8)[2, 15])
    call = {"max_new_tokens": 25, "eos_token_id": eos, "pad_token_id": PAD, **settings}
    assert pair.ours.generate(input_ids, **call).tolist() == pair.theirs.generate(input_ids, **call).tolist()


@pytest.mark.parametrize("pad", [PAD, 5, None])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4},
        {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True, "repetition_penalty": 1.2},
        {"num_beams": 2, "num_return_sequences": 2, "early_stopping": "never", "length_penalty": 2.0},
        {"num_beams": 5, "length_penalty": -0.5, "min_new_tokens": 4},
    ],
)
def test_beams_equal_transformers(oracle: Any, pair: Any, settings: dict[str, Any], pad: int | None) -> None:
    batch = padded_left(oracle, 5, 11)
    free = pair.ours.generate(**batch, max_new_tokens=30, num_beams=4)[:, 11:]
    call = {**batch, "max_new_tokens": 25, "pad_token_id": pad, **settings}
    for eos in (None, int(free[1, 4]), [int(free[1, 4]), int(free[3, 9]), int(free[0, 12])]):
        ours = pair.ours.generate(**call, eos_token_id=eos)
        assert ours.tolist() == pair.theirs.generate(**call, eos_token_id=eos, do_sample=False).tolist()


def test_several_draws_of_a_row_stand_one_below_the_other(pair: Any) -> None:
    input_ids = torch.tensor([[5, 6, 7], [1, 2, 3]])
    drawn = pair.ours.generate(input_ids, do_sample=True, max_new_tokens=8, num_return_sequences=3)
    assert drawn[:, :3].tolist() == [[5, 6, 7]] * 3 + [[1, 2, 3]] * 3
    assert len({tuple(row) for row in drawn.tolist()}) == 6


def test_without_a_mask_padding_is_known_by_the_pad_token_as_transformers_does(oracle: Any, pair: Any) -> None:
    batch = padded_left(oracle, 5, 11)
    call = {"input_ids": batch["input_ids"], "max_new_tokens": 10, "pad_token_id": PAD}
    ours = pair.ours.generate(**call)
    assert ours.tolist() == pair.theirs.generate(**call, do_sample=False).tolist()
    assert ours.tolist() == pair.ours.generate(**batch, max_new_tokens=10).tolist()
    # a pad token that is an end token too cannot tell
    call |= {"eos_token_id": PAD}
    assert pair.ours.generate(**call).tolist() == pair.theirs.generate(**call, do_sample=False).tolist()


def test_padding_on_either_side_changes_no_new_token(oracle: Any, pair: Any) -> None:
    left = padded_left(oracle, 5, 11)
    right = {name: torch.stack([row.roll(-i) for i, row in enumerate(tensor)]) for name, tensor in left.items()}
    ours = pair.ours.generate(**left, max_new_tokens=10)
    assert pair.ours.generate(**right, max_new_tokens=10)[:, 11:].tolist() == ours[:, 11:].tolist()
    alone = pair.ours.generate(left["input_ids"][4:, 4:], max_new_tokens=10)
    assert alone[0, 7:].tolist() == ours[4, 11:].tolist()


def test_sampling_keeps_to_its_seed_and_gives_each_row_its_own_draws(pair: Any) -> None:
    input_ids = torch.tensor([[5, 6, 7]] * 8)
    drawn = pair.ours.generate(input_ids, do_sample=True, max_new_tokens=8, seed=1)
    assert drawn.tolist() == pair.ours.generate(input_ids, do_sample=True, max_new_tokens=8, seed=1).tolist()
    assert drawn.tolist() != pair.ours.generate(input_ids, do_sample=True, max_new_tokens=8, seed=2).tolist()
    assert len({tuple(row) for row in drawn.tolist()}) == 8
    greedy = pair.ours.generate(input_ids, max_new_tokens=8)
    assert pair.ours.generate(input_ids, do_sample=True, top_k=1, max_new_tokens=8).tolist() == greedy.tolist()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_length": 11}, r"max_length must leave room behind input_ids \(11 wide\), got 11"),
        ({"max_new_tokens": 86}, r"row 0: prompt tokens \+ max_new_tokens must not exceed n_positions \(96\)"),
        ({"min_new_tokens": 5, "max_new_tokens": 3}, "min_new_tokens must be between"),
        ({"top_p": 0.0}, "top_p must be above"),
        ({"num_return_sequences": 2}, r"num_return_sequences must be between 1 and num_beams \(1\), got 2"),
        ({"num_beams": 2, "do_sample": True}, "num_beams must be 1 with do_sample, got 2"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    oracle: Any, pair: Any, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        pair.ours.generate(**padded_left(oracle, 2, 11), **settings)


def test_an_unknown_setting_is_no_silent_no_op(pair: Any) -> None:
    with pytest.raises(TypeError, match="penalty_alpha"):
        pair.ours.generate(torch.tensor([[1]]), penalty_alpha=0.6)


def test_a_row_of_nothing_but_padding_or_of_unknown_tokens_is_refused(pair: Any) -> None:
    with pytest.raises(ValueError, match=r"row 1: prompt_token_ids must hold at least one token"):
        pair.ours.generate(torch.tensor([[1, 2], [PAD, PAD]]), pad_token_id=PAD)
    with pytest.raises(ValueError, match=r"row 0: prompt_token_ids must lie between 0 and 96"):
        pair.ours.generate(torch.tensor([[1, 97]]))


def test_logits_that_are_not_finite_are_an_error_of_the_backend(pair: Any) -> None:
    pair.ours.lm_head.bias.data[3] = torch.nan
    with pytest.raises(BackendError, match="not finite"):
        pair.ours.generate(torch.tensor([[1, 2]]))
