"""Rows that are kept for tokens that come again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptj_batch.engine.token_rows import TokenRows

VOCAB = 12
WIDTHS = (3, 1)


class Maker:
    """Makes rows that tell their token, and notes which tokens it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, token_ids: Tensor) -> list[Tensor]:
        self.asked.append(token_ids.tolist())
        return rows_of(token_ids)


def rows_of(token_ids: Tensor) -> list[Tensor]:
    return [token_ids[:, None] * 10.0 + torch.arange(width) for width in WIDTHS]


def check(rows: TokenRows, token_ids: list[int]) -> None:
    ids = torch.tensor(token_ids, dtype=torch.int64)
    for found, expected in zip(rows(ids), rows_of(ids), strict=True):
        assert torch.equal(found, expected)


def test_a_token_that_came_twice_is_made_no_more() -> None:
    make = Maker()
    rows = TokenRows(make, VOCAB, WIDTHS, torch.float32)
    for token_ids in ([5, 3, 5], [3, 5], [3, 7, 5, 9], [7, 7], [9, 3, 7]):
        check(rows, token_ids)
    assert make.asked == [[3, 5], [3], [7, 9], [7], [9]]


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_what_has_no_room_is_made_again_each_time(max_tokens: int) -> None:
    make = Maker()
    rows = TokenRows(make, VOCAB, WIDTHS, torch.float32, max_tokens)
    for _ in range(2):
        check(rows, [1, 4, 9, 1, 4, 9])
    assert make.asked == [[1, 4, 9], [1, 4, 9][max_tokens:]]


def test_no_tokens_have_no_rows() -> None:
    rows = TokenRows(Maker(), VOCAB, WIDTHS, torch.float32)
    assert [found.shape for found in rows(torch.tensor([], dtype=torch.int64))] == [(0, 3), (0, 1)]


@given(st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=9), max_size=6), st.integers(0, VOCAB))
def test_rows_are_those_of_their_tokens_whatever_came_before(calls: list[list[int]], max_tokens: int) -> None:
    rows = TokenRows(Maker(), VOCAB, WIDTHS, torch.float32, max_tokens)
    for token_ids in calls:
        check(rows, token_ids)
