from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch import EmbedRequest, LabelRequest, ScoreRequest
from gptj_batch.engine.packed_rows import PackedRows
from gptj_batch.engine.prefix_groups import MIN_SHARED_TOKENS
from gptj_batch.engine.row import Row
from gptj_batch.engine.row_queue import RowQueue
from gptj_batch.engine.shared_prefix import PrefixStore
from gptj_batch.requests import HeadRequest

N_LAYER = 3
TEMPLATES = ([1] * 40, [1] * 20 + [2] * 30, [3] * 17, [])

PROMPTS = st.builds(
    lambda template, tail, cut: (template + tail)[: cut or None] or [9],
    st.sampled_from(TEMPLATES),
    st.lists(st.integers(0, 5), max_size=6),
    st.sampled_from([0, 0, 0, 17, 20, 40]),
)


@st.composite
def requests(draw: st.DrawFn) -> HeadRequest:
    prompt = draw(PROMPTS)
    kinds = ["label", "embed", "score"] if len(prompt) > 1 else ["label", "embed"]
    kind = draw(st.sampled_from(kinds))
    if kind == "label":
        return LabelRequest(key="a", prompt_token_ids=prompt, label_token_ids=((1, 2), (1, 3), (4,)))
    if kind == "score":
        return ScoreRequest(key="a", prompt_token_ids=prompt, first_token=draw(st.integers(1, len(prompt) - 1)))
    pooling, layer = draw(st.sampled_from(["mean", "last"])), draw(st.sampled_from([None, 0, 1, -1]))
    return EmbedRequest(key="a", prompt_token_ids=prompt, pooling=pooling, layer=layer)


def label(prompt: list[int], uid: int = 0) -> Row:
    return Row(uid, LabelRequest(key="a", prompt_token_ids=prompt, label_token_ids=((1,),)))


def make_queue() -> RowQueue:
    return RowQueue(PrefixStore(max_bytes=10**9, bytes_per_token=1), N_LAYER)


def hold(queue: RowQueue, store: PrefixStore, rows: list[Row]) -> None:
    """Give the prefixes of rows that have just run the memory that a pass would give them."""
    for row in rows:
        if row.share is not None and queue.is_worth_keeping(row.share):
            row.share.prefix.layers = [(torch.zeros(1), torch.zeros(1))] * N_LAYER
            store.use(row.share.prefix)


@given(st.lists(st.lists(requests(), max_size=10), max_size=4), st.integers(1, 120))
def test_every_row_is_taken_once_and_gets_all_of_its_tokens(arrivals: list[list[HeadRequest]], budget: int) -> None:
    store = PrefixStore(max_bytes=200, bytes_per_token=1)
    queue = RowQueue(store, N_LAYER)
    taken: list[Row] = []
    num_added = 0
    for arrival in arrivals:
        for request in arrival:
            queue.add(Row(num_added, request))
            num_added += 1
        taken += (rows := queue.take(budget))
        hold(queue, store, rows)
    while queue:
        taken += (rows := queue.take(budget))
        assert rows
        hold(queue, store, rows)
    assert Counter(row.uid for row in taken) == Counter(range(num_added))
    for row in taken:
        shared = [] if row.share is None else row.share.prefix.token_ids[: row.num_shared]
        assert len(shared) == row.num_shared <= row.first_read
        assert shared + row.token_ids == row.context + row.tree.token_ids[1:]
        assert row.num_tokens == len(row.token_ids) == len(row.positions) >= row.num_read >= 1


@given(st.lists(requests(), min_size=1, max_size=20), st.integers(1, 200))
def test_a_step_is_of_one_depth_and_within_its_budget(of_rows: list[HeadRequest], budget: int) -> None:
    queue = make_queue()
    for uid, request in enumerate(of_rows):
        queue.add(Row(uid, request))
    while rows := queue.take(budget):
        assert len({row.num_layers(N_LAYER) for row in rows}) == 1
        packed = PackedRows()
        if rows[0].num_layers(N_LAYER) != 0:  # embeddings see nothing before them
            for prefix in dict.fromkeys(row.share.prefix for row in rows if row.share is not None):
                packed.feed(prefix, is_kept=False)
        packed.add(rows)
        assert len(rows) == 1 or len(packed.token_ids) <= budget


def test_rows_equal_to_what_they_share_still_feed_their_last_token() -> None:
    queue = make_queue()
    for uid in range(4):
        queue.add(label([5] * 30, uid))
    assert [(row.num_shared, row.token_ids, row.positions) for row in queue.take(1000)] == [(29, [5], [29])] * 4


def test_templates_mixed_in_one_queue_come_one_after_the_other() -> None:
    queue = make_queue()
    for uid in range(12):
        queue.add(label([uid % 2] * 50 + [10 + uid] * (7 - uid // 2), uid))
    queue.add(label([8, 8, 8], 12))
    rows = queue.take(10_000)
    assert [row.num_shared for row in rows] == [50] * 12 + [0]
    assert [row.context[0] for row in rows] == [0] * 6 + [1] * 6 + [8]
    lengths = [row.num_tokens for row in rows]
    assert lengths[:6] == sorted(lengths[:6]) and lengths[6:12] == sorted(lengths[6:12])


def test_rows_without_a_common_beginning_share_nothing() -> None:
    queue = make_queue()
    for uid in range(10):
        queue.add(label([uid] * 50, uid))
        queue.add(label([20] * (MIN_SHARED_TOKENS - 1) + [uid], uid))
    assert all(row.share is None for row in queue.take(10_000))


def test_a_beginning_is_found_where_rows_come_one_by_one() -> None:
    queue = make_queue()
    shared = []
    for uid in range(3):
        queue.add(label([5] * 50 + [uid], uid))
        (row,) = queue.take(1000)
        shared.append((row.num_shared, row.share is not None and queue.is_worth_keeping(row.share)))
    assert shared == [(0, False), (50, True), (50, True)]


def test_what_is_held_serves_rows_that_share_only_its_beginning() -> None:
    store = PrefixStore(max_bytes=10**9, bytes_per_token=1)
    queue = RowQueue(store, N_LAYER)
    for uid in range(2):
        queue.add(label([5] * 50 + [uid], uid))
        hold(queue, store, queue.take(1000))
    (held,) = store
    queue.add(label([5] * 40 + [7], 2))
    (row,) = queue.take(1000)
    assert row.share is not None
    assert row.share.prefix is held and (len(held.token_ids), row.num_shared) == (50, 40)


def test_a_row_that_has_been_let_go_is_not_taken() -> None:
    queue = make_queue()
    rows = [label([5] * 50 + [uid], uid) for uid in range(4)]
    for row in rows[:3]:
        queue.add(row)
    assert queue.take(51) == rows[:1]
    queue.add(rows[3])
    queue.release(rows[1])
    queue.release(rows[3])
    assert queue.take(1000) == [rows[2]] and not queue
