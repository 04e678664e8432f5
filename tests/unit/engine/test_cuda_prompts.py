"""Attention over whole prompts that lie side by side."""

import pytest
import torch

from gptj_batch.engine.cuda_prompts import Spans, Together, one_by_one

from .paged import exact


def test_prompts_that_lie_side_by_side_do_not_see_each_other() -> None:
    query, key, value = torch.randn(3, 9, 2, 8)
    spans = Spans.of([(4, 7), (7, 8), (8, 13)], torch.device("cpu"))
    mixed = one_by_one(query, key, value, spans)
    for first, stop in ((0, 3), (3, 4), (4, 9)):
        part = slice(first, stop)
        expected = exact(query[part], key[part], value[part], 0)
        torch.testing.assert_close(mixed[part].double(), expected, atol=2e-6, rtol=0)


def test_spans_know_their_rows_and_borders() -> None:
    spans = Spans.of([(4, 7), (7, 8)], torch.device("cpu"))
    assert (spans.rows, spans.lengths) == (slice(4, 8), [3, 1])
    assert spans.borders.tolist() == [0, 3, 4]
    assert spans.borders.dtype == torch.int32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen_attn runs on a GPU only")
def test_all_prompts_in_one_launch() -> None:
    qkv = torch.randn(3, 9, 2, 64, dtype=torch.float16, device="cuda")
    spans = Spans.of([(0, 3), (3, 4), (4, 9)], qkv.device)
    torch.testing.assert_close(Together()(*qkv, spans), one_by_one(*qkv, spans), atol=2e-3, rtol=0)
