import math

import pytest
import torch
from torch import Tensor

from gptj_batch.model.attention import DenseAttend, causal_mask, dense_mask, packed_sequence_ids
from gptj_batch.model.cache import DynamicCache

LOWEST = torch.finfo(torch.float32).min
CPU = torch.device("cpu")


def visible(mask: Tensor) -> list[list[int]]:
    return (mask == 0).int().tolist()


def attend(mask: Tensor | None, keep_weights: bool, cache: DynamicCache | None = None) -> DenseAttend:
    return DenseAttend(batch_size=2, mask=mask, cache=cache, dropout=0.0, keep_weights=keep_weights)


def test_the_causal_mask_hides_later_tokens_behind_any_past() -> None:
    mask = causal_mask(num_queries=2, num_past=1, dtype=torch.float32, device=CPU)
    assert visible(mask[0, 0]) == [[1, 1, 0], [1, 1, 1]]
    assert mask.min() == LOWEST


def test_no_mask_is_made_where_plain_causal_attention_says_the_same() -> None:
    assert dense_mask(3, 0, None, None, torch.float32, CPU) is None
    assert dense_mask(3, 1, None, None, torch.float32, CPU) is not None


def test_padding_is_hidden_once_and_stays_finite() -> None:
    mask = dense_mask(3, 0, torch.tensor([[0, 1, 1], [1, 1, 0]]), None, torch.float16, CPU)
    assert mask is not None
    assert visible(mask[0, 0]) == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert visible(mask[1, 0]) == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert bool(mask.isfinite().all())


def test_a_mask_that_does_not_cover_past_and_present_is_refused() -> None:
    with pytest.raises(ValueError, match="5 wide, got 3"):
        dense_mask(3, 2, torch.ones(1, 3), None, torch.float32, CPU)


def test_a_4d_mask_keeps_its_numbers_but_no_infinity() -> None:
    given = torch.tensor([[[[0.5, -torch.inf], [0.0, LOWEST]]]])
    mask = dense_mask(2, 0, given, None, torch.float16, CPU)
    lowest = torch.finfo(torch.float16).min
    assert mask is not None
    assert mask.flatten().tolist() == [0.5, lowest, 0.0, lowest]
    from_bool = dense_mask(2, 0, given == 0, None, torch.float32, CPU)
    assert from_bool is not None
    assert from_bool.flatten().tolist() == [LOWEST, LOWEST, 0.0, LOWEST]


def test_positions_that_restart_show_packed_sequences() -> None:
    assert packed_sequence_ids(torch.tensor([[4, 5, 6]])) is None
    ids = packed_sequence_ids(torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]))
    assert ids is not None
    assert ids.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    mask = dense_mask(5, 0, None, ids, torch.float32, CPU)
    assert mask is not None
    assert visible(mask[0, 0]) == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("keep_weights", [False, True])
def test_attention_is_the_softmax_of_scaled_products(keep_weights: bool) -> None:
    query, key, value = torch.randn(3, 2 * 3, 2, 4)
    mixed = attend(None, keep_weights)(0, query, key, value)
    # the last token of the second row, second head, by hand
    scores = torch.stack([query[5, 1] @ key[token, 1] for token in (3, 4, 5)]) / math.sqrt(4)
    expected = scores.softmax(0) @ value[3:6, 1]
    torch.testing.assert_close(mixed[5, 1], expected)


def test_kept_weights_are_of_every_layer_and_sum_to_one() -> None:
    attending = attend(None, keep_weights=True)
    for layer in range(2):
        attending(layer, *torch.randn(3, 2 * 3, 2, 4))
    assert attending.weights is not None
    assert [weights.shape for weights in attending.weights] == [(2, 2, 3, 3)] * 2
    torch.testing.assert_close(attending.weights[1].sum(-1), torch.ones(2, 2, 3))
    assert attend(None, keep_weights=False).weights is None


def test_a_cache_puts_the_past_before_the_present() -> None:
    query, key, value = torch.randn(3, 2, 5, 2, 4)  # two rows of five tokens
    whole = attend(None, False)(0, *(x.flatten(0, 1) for x in (query, key, value))).view(2, 5, 2, 4)
    cache = DynamicCache()
    for start, end in ((0, 3), (3, 5)):
        mask = dense_mask(end - start, start, None, None, torch.float32, CPU)
        step = (x[:, start:end].flatten(0, 1) for x in (query, key, value))
        mixed = attend(mask, False, cache)(0, *step)
        torch.testing.assert_close(mixed.view(2, end - start, 2, 4), whole[:, start:end])


def test_gradients_through_a_row_that_sees_nothing_are_those_of_a_plain_average() -> None:
    """The fused kernel's backward pass gives three times as much here, and the outputs alone would not show it."""
    mask = dense_mask(3, 0, torch.tensor([[0, 0, 1]]).expand(2, 3), None, torch.float32, CPU)
    inputs = [torch.randn(2 * 3, 2, 4, requires_grad=True) for _ in range(3)]
    attend(mask, keep_weights=False)(0, *inputs).view(2, 3, 2, 4)[:, 0].sum().backward()
    torch.testing.assert_close(inputs[2].grad, torch.full((6, 2, 4), 1 / 3))


def test_dropout_drops_whole_weights() -> None:
    attending = DenseAttend(batch_size=2, mask=None, cache=None, dropout=0.5, keep_weights=True)
    attending(0, *torch.randn(3, 2 * 8, 2, 4))
    assert attending.weights is not None
    lower = attending.weights[0][..., torch.ones(8, 8).tril().bool()]
    assert 0.3 < (lower == 0).float().mean() < 0.7
