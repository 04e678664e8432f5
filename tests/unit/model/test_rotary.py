import math

import torch

from gptj_batch.model.rotary import angles, rotate


def test_the_first_pair_turns_by_one_radian_a_token_and_later_ones_ever_more_slowly() -> None:
    cos, sin = angles(torch.tensor([0, 1, 5]), rotary_dim=4)
    assert cos.shape == sin.shape == (3, 2)
    assert cos.dtype == torch.float32
    expected = [[math.cos(t), math.cos(t / 100)] for t in (0, 1, 5)]
    torch.testing.assert_close(cos, torch.tensor(expected))


def test_neighbouring_channels_are_a_pair() -> None:
    cos, sin = angles(torch.tensor([3]), rotary_dim=4)
    x = torch.tensor([[[1.0, 0.0, 0.0, 1.0, 7.0, 8.0]]])
    rotated = rotate(x, cos, sin)[0, 0]
    slow = 3 / 100
    expected = torch.tensor([math.cos(3), math.sin(3), -math.sin(slow), math.cos(slow), 7.0, 8.0])
    torch.testing.assert_close(rotated, expected)


def test_only_the_distance_between_tokens_matters_to_their_product() -> None:
    query, key = torch.randn(2, 1, 3, 8)
    products = []
    for start in (0, 1000):
        cos, sin = angles(torch.tensor([start, start + 4]), rotary_dim=8)
        products.append((rotate(query, cos[:1], sin[:1]) * rotate(key, cos[1:], sin[1:])).sum(-1))
    torch.testing.assert_close(products[0], products[1], rtol=1e-4, atol=1e-4)


def test_low_precision_is_rotated_in_float32_and_rounded_once() -> None:
    cos, sin = angles(torch.tensor([2047, 1]), rotary_dim=8)
    x = torch.randn(2, 3, 8).bfloat16()
    rotated = rotate(x, cos, sin)
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated, rotate(x.float(), cos, sin).bfloat16())
