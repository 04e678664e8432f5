from gptj_batch import LabelRequest, ScoreRequest
from gptj_batch.engine.packed_rows import PackedRows
from gptj_batch.engine.prefix_groups import make_key
from gptj_batch.engine.row import Row
from gptj_batch.engine.shared_prefix import Share, SharedPrefix


def shared(token_ids: list[int]) -> Share:
    return Share(prefix=SharedPrefix(make_key(token_ids), token_ids), num_tokens=len(token_ids))


def test_prefixes_stand_first_then_the_rows_each_with_its_branches() -> None:
    share = shared([1, 2, 3])
    first = Row(0, LabelRequest(key="a", prompt_token_ids=[1, 2, 3, 4], label_token_ids=((5, 6), (7, 8))))
    second = Row(1, LabelRequest(key="b", prompt_token_ids=[1, 2, 3, 9, 9], label_token_ids=((5,),)))
    alone = Row(2, ScoreRequest(key="c", prompt_token_ids=[7, 8, 9], first_token=1))
    first.share = second.share = share
    packed = PackedRows()
    packed.feed(share.prefix, is_kept=True)
    packed.add([first, second, alone])
    assert packed.token_ids == [1, 2, 3, 4, 5, 7, 9, 9, 7, 8]
    assert packed.positions == [0, 1, 2, 3, 4, 4, 3, 4, 0, 1]
    assert packed.read == [3, 4, 5, 7, 8, 9]
    assert [(row.first, row.branch, row.stop) for row in packed.rows] == [(3, 4, 6), (6, 8, 8), (8, 10, 10)]
    assert [(fed.span, fed.is_kept) for fed in packed.fed] == [(slice(0, 3), True)]
    assert [(span.share, span.span) for span in packed.shared] == [(share, slice(3, 8))]


def test_a_prefix_that_is_held_is_not_fed() -> None:
    row = Row(0, LabelRequest(key="a", prompt_token_ids=[1, 2, 3], label_token_ids=((5,),)))
    row.share = shared([1, 2])
    packed = PackedRows()
    packed.add([row])
    assert (packed.token_ids, packed.positions, packed.read) == ([3], [2], [0])
    assert not packed.feeds(row.share.prefix)
