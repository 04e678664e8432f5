import pytest
import torch
import torch.nn.functional as F

from gptj_batch import LabelRequest
from gptj_batch.engine import tree_attend
from gptj_batch.engine.packed_rows import PackedRows
from gptj_batch.engine.prefix_groups import make_key
from gptj_batch.engine.row import Row
from gptj_batch.engine.shared_prefix import Share, SharedPrefix
from gptj_batch.engine.tree_attend import TreeAttend, attend, attend_explicitly, merge

HEADS, CHANNELS = 2, 16
LABELS = ((5, 6, 7), (5, 6, 8, 9), (4,), (5,), (2, 6))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def make_rows(prefix_token_ids: list[int]) -> list[Row]:
    prefix = SharedPrefix(make_key(prefix_token_ids), prefix_token_ids)
    share = Share(prefix=prefix, num_tokens=len(prefix_token_ids))
    rows = [
        Row(
            uid,
            LabelRequest(key="a", prompt_token_ids=prefix_token_ids + [10 + uid] * (uid + 1), label_token_ids=labels),
        )
        for uid, labels in enumerate([LABELS, ((1,),), LABELS[1:]])
    ]
    for row in rows:
        row.share = share
    rows.append(Row(9, LabelRequest(key="a", prompt_token_ids=[3, 4, 5], label_token_ids=LABELS)))
    return rows


def pack(rows: list[Row], is_kept: bool) -> PackedRows:
    packed = PackedRows()
    assert rows[0].share is not None
    if not rows[0].share.prefix.layers:
        packed.feed(rows[0].share.prefix, is_kept)
    packed.add(rows)
    return packed


def parents(packed: PackedRows) -> torch.Tensor:
    """Return which token of the pass may see which, told from rows, trees and prefixes one token at a time."""
    num_tokens, num_fed = len(packed.token_ids), packed.fed[0].span.stop
    seen = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    seen[:num_fed, :num_fed] = True
    for span in packed.rows:
        for token in range(span.first, span.stop):
            seen[token, span.first : min(token, span.branch - 1) + 1] = True
            node = token - span.branch + 1
            while node > 0:
                seen[token, span.branch + node - 1] = True
                node = span.tree.parents[node]
    for shared in packed.shared:
        seen[shared.span, :num_fed] = True
    return seen & torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()


@pytest.mark.parametrize("num_padding", [0, 3])
def test_a_pass_attends_as_one_dense_attention_with_a_mask_does(num_padding: int) -> None:
    packed = pack(make_rows([1, 2, 3, 4, 5]), is_kept=False)
    num_tokens = len(packed.token_ids)
    query, key, value = (random(num_tokens + num_padding, HEADS, CHANNELS + extra)[..., extra:] for extra in range(3))
    mixed = TreeAttend(packed, torch.float32, torch.device("cpu"))(0, query, key, value)
    dense = F.scaled_dot_product_attention(
        *(x[:num_tokens].transpose(0, 1) for x in (query, key, value)), attn_mask=parents(packed)
    )
    torch.testing.assert_close(mixed[:num_tokens], dense.transpose(0, 1), atol=1e-6, rtol=0)


def test_what_is_kept_serves_the_next_pass() -> None:
    rows = make_rows([1, 2, 3, 4, 5])
    first = pack(rows, is_kept=True)
    query, key, value = (random(len(first.token_ids), HEADS, CHANNELS + extra)[..., extra:] for extra in range(3))
    once = TreeAttend(first, torch.float32, torch.device("cpu"))(0, query, key, value)
    again = pack(rows, is_kept=True)
    assert again.fed == [] and len(again.token_ids) == len(first.token_ids) - 5
    (kept,) = rows[0].share.prefix.layers if rows[0].share else ()
    assert all(tensor.shape == (HEADS, 5, CHANNELS) and tensor.is_contiguous() for tensor in kept)
    twice = TreeAttend(again, torch.float32, torch.device("cpu"))(0, query[5:], key[5:], value[5:])
    torch.testing.assert_close(twice, once[5:], atol=0, rtol=0)


@pytest.mark.parametrize("mask", ["none", "causal", "bias"])
@pytest.mark.parametrize("max_score_bytes", [1, 4 * HEADS * 9 * 4, 2**26])
def test_the_explicit_form_is_the_fused_one(mask: str, max_score_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attend, "MAX_SCORE_BYTES", max_score_bytes)
    query, key, value = (random(HEADS, 9, CHANNELS + extra)[..., extra:] for extra in range(3))
    bias = torch.zeros(9, 9).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(3), -torch.inf)
    more = {"none": {}, "causal": {"is_causal": True}, "bias": {"bias": bias}}[mask]
    for found, expected in zip(
        attend_explicitly(query, key, value, **more), attend(query, key, value, **more), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_attention_over_two_halves_merges_into_attention_over_both() -> None:
    query, key, value = (random(HEADS, 9, CHANNELS + extra)[..., extra:] for extra in range(3))
    halves = [attend(query, key[:, part], value[:, part]) for part in (slice(0, 2), slice(2, 9))]
    torch.testing.assert_close(merge(*halves[0], *halves[1]), attend(query, key, value)[0], atol=1e-6, rtol=0)
