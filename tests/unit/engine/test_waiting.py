from gptj_batch.engine import waiting as module
from gptj_batch.engine.sequence import Group
from gptj_batch.engine.waiting import Waiting

from .simulation import make_sequence


def make_group(uid: int, max_new_tokens: int = 8) -> Group:
    return Group(make_sequence(uid, [1], max_new_tokens), 1)


def uids(groups: Waiting) -> list[int]:
    return [group.sequences[0].uid for group in groups]


def take(waiting: Waiting, count: int) -> list[int]:
    taken = []
    for _ in range(count):
        assert waiting.first() is not None
        taken.append(waiting.take_first().sequences[0].uid)
    return taken


def test_what_may_become_longest_begins_first_and_equals_in_order_of_arrival() -> None:
    waiting = Waiting()
    for uid, max_new_tokens in enumerate([5, 9, 5, 70, 9]):
        waiting.add(make_group(uid, max_new_tokens))
    assert take(waiting, 5) == [3, 1, 4, 0, 2]
    assert waiting.first() is None


def test_nothing_overtakes_those_whose_window_is_open() -> None:
    waiting = Waiting()
    waiting.add(make_group(0, 1))
    waiting.add(make_group(1, 1))
    assert waiting.first() is not None
    waiting.add(make_group(2, 100))
    assert uids(waiting) == [0, 1, 2]
    assert take(waiting, 3) == [0, 1, 2]


def test_a_window_holds_only_so_many() -> None:
    waiting = Waiting()
    for uid in range(module.WINDOW_SIZE):
        waiting.add(make_group(uid, 1))
    waiting.add(make_group(-1, 100))
    assert take(waiting, module.WINDOW_SIZE)[-1] == module.WINDOW_SIZE - 1
    assert take(waiting, 1) == [-1]


def test_what_comes_back_goes_to_the_place_it_had() -> None:
    waiting = Waiting()
    for uid in range(4):
        waiting.add(make_group(uid))
    waiting.first()
    groups = [waiting.take_first() for _ in range(3)]
    waiting.put_back(groups[1])
    waiting.put_back(groups[0])
    assert uids(waiting) == [0, 1, 3]


def test_one_is_taken_out_wherever_it_waits() -> None:
    waiting = Waiting()
    groups = [make_group(uid) for uid in range(4)]
    for group in groups[:2]:
        waiting.add(group)
    waiting.first()
    for group in groups[2:]:
        waiting.add(group)
    waiting.remove(groups[1])
    waiting.remove(groups[2])
    assert uids(waiting) == [0, 3]
    assert len(waiting) == 2
