from typing import Any

import pytest

from gptj_batch.engine.scheduler import Scheduler, Step
from gptj_batch.engine.sequence import Sequence

from .simulation import make_scheduler, make_sequence


def distinct(uid: int, num_tokens: int) -> list[int]:
    """Return a prompt that begins like no other's."""
    return [uid * 100 + place for place in range(num_tokens)]


def shape(step: Step) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.uid, chunk.start, chunk.num_tokens) for chunk in step.chunks]


def run_step(scheduler: Scheduler, *, is_checked: bool = True) -> Step:
    """Schedule, pretend to run, generate a token wherever one is due, and let go of what is done."""
    step = scheduler.schedule()
    ending = [chunk.sequence for chunk in step.chunks if chunk.is_last]
    scheduler.commit(step)
    for sequence in ending:
        sequence.append(0)
        if len(sequence.generated_token_ids) == sequence.request.sampling.max_new_tokens:
            scheduler.release(sequence)
    if is_checked:
        scheduler.check()
    return step


def add_all(scheduler: Scheduler, *prompts: list[int], **sampling: Any) -> list[Sequence]:
    sequences = [make_sequence(uid, prompt, **sampling) for uid, prompt in enumerate(prompts)]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def test_a_long_prompt_is_cut_into_chunks() -> None:
    scheduler = make_scheduler()
    add_all(scheduler, distinct(0, 40))
    assert [shape(run_step(scheduler)) for _ in range(4)] == [[(0, 0, 16)], [(0, 16, 16)], [(0, 32, 8)], [(0, 40, 1)]]


def test_decoding_comes_before_prompts_and_they_fill_what_is_left() -> None:
    scheduler = make_scheduler()
    add_all(scheduler, distinct(0, 3))
    run_step(scheduler)
    scheduler.add(make_sequence(1, distinct(1, 40)))
    assert shape(run_step(scheduler)) == [(0, 3, 1), (1, 0, 15)]
    assert shape(run_step(scheduler)) == [(0, 4, 1), (1, 15, 15)]


def test_only_so_many_run_at_once_and_the_first_to_come_runs_first() -> None:
    scheduler = make_scheduler(max_running=2)
    add_all(scheduler, *(distinct(uid, 2) for uid in range(3)), max_new_tokens=2)
    assert shape(run_step(scheduler)) == [(0, 0, 2), (1, 0, 2)]
    assert shape(run_step(scheduler)) == [(0, 2, 1), (1, 2, 1)]
    assert shape(run_step(scheduler)) == [(2, 0, 2)]


def test_a_prompt_waits_until_its_blocks_and_a_reserve_are_free() -> None:
    scheduler = make_scheduler(num_blocks=4)
    add_all(scheduler, distinct(0, 5), distinct(1, 5))
    assert shape(run_step(scheduler)) == [(0, 0, 5)]
    assert scheduler.pool.num_free == 2


def test_blocks_come_only_as_tokens_do() -> None:
    scheduler = make_scheduler()
    add_all(scheduler, distinct(0, 40))
    assert len(run_step(scheduler).new_blocks) == 4
    assert scheduler.pool.num_used == 4


def test_without_memory_the_youngest_gives_way_and_is_fed_again_with_what_it_has_generated() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size_tokens=2, prefix_caching=False)
    add_all(scheduler, [0, 0], [0, 0], max_new_tokens=6)
    steps = [shape(run_step(scheduler)) for _ in range(9)]
    assert steps[:3] == [[(0, 0, 2), (1, 0, 2)], [(0, 2, 1), (1, 2, 1)], [(0, 3, 1), (1, 3, 1)]]
    assert steps[3:6] == [[(0, 4, 1)], [(0, 5, 1)], [(0, 6, 1)]]
    assert steps[6:] == [[(1, 0, 5)], [(1, 5, 1)], [(1, 6, 1)]]
    assert scheduler.num_preemptions == 1
    assert not scheduler.has_unfinished


def test_what_was_preempted_is_not_fed_again_as_far_as_it_is_still_cached() -> None:
    scheduler = make_scheduler(num_blocks=6, block_size_tokens=2)
    add_all(scheduler, distinct(0, 2), distinct(1, 3), max_new_tokens=6)
    steps = [shape(run_step(scheduler)) for _ in range(9)]
    assert scheduler.num_preemptions == 1
    assert steps[3:7] == [[(0, 4, 1), (1, 5, 1)], [(0, 5, 1)], [(0, 6, 1)], [(1, 4, 3)]], "one block had to be used"


@pytest.mark.parametrize("sampling", [{"is_sure": True}, {"min_new_tokens": 6}])
def test_blocks_that_a_sequence_is_sure_to_need_are_given_to_nobody_else(sampling: dict[str, Any]) -> None:
    scheduler = make_scheduler(num_blocks=5, block_size_tokens=2)
    add_all(scheduler, distinct(0, 2), distinct(1, 2), max_new_tokens=6, **sampling)
    steps = [shape(run_step(scheduler)) for _ in range(12)]
    assert steps[0] == [(0, 0, 2)]
    assert steps[6] == [(1, 0, 2)]
    assert scheduler.num_preemptions == 0
    assert not scheduler.has_unfinished


def test_128_rows_in_memory_for_a_quarter_of_them_are_computed_once() -> None:
    scheduler = make_scheduler(max_step_tokens=1024, max_running=64, block_size_tokens=16, num_blocks=1024)
    add_all(scheduler, *(distinct(uid * 10, 512) for uid in range(128)), max_new_tokens=128, is_sure=True)
    while scheduler.has_unfinished:
        run_step(scheduler, is_checked=False)
    assert scheduler.num_fed_tokens == 128 * (512 + 128 - 1)
    assert scheduler.num_preemptions == 0


def test_cancelling_frees_at_once() -> None:
    scheduler = make_scheduler(max_running=1)
    running, waiting = add_all(scheduler, distinct(0, 9), distinct(1, 9))
    run_step(scheduler)
    scheduler.release(running)
    scheduler.release(waiting)
    scheduler.check()
    assert not scheduler.has_unfinished
    assert scheduler.pool.num_free == 32
    assert not running.is_live


def test_the_check_finds_a_lost_block() -> None:
    scheduler = make_scheduler()
    (sequence,) = add_all(scheduler, distinct(0, 9))
    run_step(scheduler)
    sequence.block_table.pop()
    with pytest.raises(AssertionError):
        scheduler.check()


def test_512_requests_with_the_same_600_tokens_compute_them_once() -> None:
    scheduler = make_scheduler(max_step_tokens=1024, max_running=64, block_size_tokens=16, num_blocks=1500)
    shared = list(range(600))
    sequences = add_all(
        scheduler, *([*shared, *distinct(10 + uid, 32)] for uid in range(512)), max_new_tokens=2, is_sure=True
    )
    first = run_step(scheduler)
    assert shape(first) == [(0, 0, 632)]
    second = run_step(scheduler)
    assert shape(second)[1:3] == [(1, 600, 32), (2, 600, 32)]
    assert {copy.num_tokens for copy in second.copies} == {8}
    while scheduler.has_unfinished:
        run_step(scheduler, is_checked=False)
    assert scheduler.num_fed_tokens == 600 + 512 * (32 + 1)
    assert scheduler.num_cached_prompt_tokens == 511 * 600
    assert [sequence.num_found_tokens for sequence in sequences] == [0] + [600] * 511


def test_equal_prompts_share_everything_but_their_last_token() -> None:
    scheduler = make_scheduler()
    add_all(scheduler, *[distinct(0, 11)] * 4)
    assert shape(run_step(scheduler)) == [(0, 0, 11)]
    step = run_step(scheduler)
    assert shape(step) == [(0, 11, 1), (1, 10, 1), (2, 10, 1), (3, 10, 1)]
    assert [copy.num_tokens for copy in step.copies] == [2, 2, 2]
    assert scheduler.pool.num_used == 2 + 4


def test_one_that_is_held_back_does_not_hold_up_those_behind_it() -> None:
    scheduler = make_scheduler()
    add_all(scheduler, distinct(0, 9), distinct(0, 9), distinct(2, 3))
    assert shape(run_step(scheduler)) == [(0, 0, 9), (2, 0, 3)]
    assert shape(run_step(scheduler)) == [(0, 9, 1), (2, 3, 1), (1, 8, 1)]


def test_where_no_block_can_be_spared_for_a_copy_the_tokens_are_computed() -> None:
    scheduler = make_scheduler(num_blocks=2)
    add_all(scheduler, distinct(0, 3), max_new_tokens=1)
    run_step(scheduler)
    scheduler.add(make_sequence(1, [*distinct(0, 3), 7, 7, 7, 7, 7], max_new_tokens=1))
    assert shape(run_step(scheduler)) == [(1, 0, 8)]


def test_one_that_is_held_back_may_be_cancelled() -> None:
    scheduler = make_scheduler()
    _, follower = add_all(scheduler, distinct(0, 9), distinct(0, 9))
    run_step(scheduler)
    scheduler.release(follower)
    scheduler.check()
    while scheduler.has_unfinished:
        assert [uid for uid, _, _ in shape(run_step(scheduler))] == [0]


def test_tokens_of_a_sequence_whose_logits_were_not_finite_are_given_to_nobody() -> None:
    scheduler = make_scheduler()
    spoiled, _ = add_all(scheduler, distinct(0, 9), distinct(0, 9))
    step = scheduler.schedule()
    scheduler.commit(step, {spoiled})
    scheduler.release(spoiled)
    scheduler.check()
    assert shape(run_step(scheduler)) == [(1, 0, 9)]


def test_without_prefix_caching_every_prompt_is_computed_by_itself() -> None:
    scheduler = make_scheduler(prefix_caching=False)
    add_all(scheduler, *[distinct(0, 5)] * 3)
    assert shape(run_step(scheduler)) == [(0, 0, 5), (1, 0, 5), (2, 0, 5)]
    assert scheduler.num_cached_prompt_tokens == 0


def start_group(num_prompt_tokens: int, num_sequences: int, **bounds: Any) -> tuple[Scheduler, list[Sequence]]:
    """Return a group that has just split: its members' next tokens are in place."""
    scheduler = make_scheduler(**bounds)
    first = make_sequence(0, distinct(0, num_prompt_tokens))
    scheduler.add(first, num_sequences)
    scheduler.commit(scheduler.schedule())
    beams = [first, *(Sequence(uid, first.request) for uid in range(1, num_sequences))]
    for beam in beams[1:]:
        scheduler.fork(first, beam)
    for beam in beams:
        beam.append(50 + beam.uid)
    scheduler.check()
    return scheduler, beams


def test_a_fork_shares_whole_blocks_and_copies_the_last() -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=3)
    tables = [beam.block_table for beam in beams]
    assert len({tuple(table[:2]) for table in tables}) == 1
    assert len({table[2] for table in tables}) == 3
    step = scheduler.schedule()
    assert shape(step) == [(0, 10, 1), (1, 10, 1), (2, 10, 1)]
    assert sorted(step.copies) == [(tables[0][2], tables[1][2], 2), (tables[0][2], tables[2][2], 2)]
    assert step.new_blocks == []
    scheduler.commit(step)
    scheduler.check()


def test_a_fork_for_which_no_block_is_free_feeds_the_last_tokens_again() -> None:
    scheduler = make_scheduler(num_blocks=3)
    first = make_sequence(0, distinct(0, 10))
    scheduler.add(first)
    scheduler.commit(scheduler.schedule())
    child = Sequence(1, first.request)
    scheduler.fork(first, child)
    assert (child.num_cached_tokens, child.num_tokens, len(child.block_table)) == (8, 10, 2)
    scheduler.check()


def test_a_fork_of_a_fork_is_copied_from_where_the_tokens_are() -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=2)
    grandchild = Sequence(2, beams[0].request)
    scheduler.fork(beams[1], grandchild)
    scheduler.check()
    step = scheduler.schedule()
    assert [copy.source for copy in step.copies] == [beams[0].block_table[2]] * 2
    assert grandchild.token_ids == beams[1].token_ids


def test_the_place_of_a_pruned_sequence_is_kept_for_one_that_splits_off_later() -> None:
    scheduler, beams = start_group(num_prompt_tokens=8, num_sequences=3, max_running=4)
    promised = sum(owner.num_promised_blocks for owner in (beams[0].group, *beams))
    scheduler.prune(beams[1])
    scheduler.check()
    assert (beams[1].is_live, beams[0].group.size) == (False, 3)
    assert sum(owner.num_promised_blocks for owner in (beams[0].group, beams[0], beams[2])) == promised
    add_all(scheduler, distinct(1, 8), distinct(2, 8))
    assert [uid for uid, _, _ in shape(run_step(scheduler))] == [0, 2, 0]  # one more fits beside the three
    scheduler.fork(beams[2], Sequence(3, beams[0].request))
    scheduler.check()
    assert beams[0].group.num_unborn == 0


def test_what_was_to_be_copied_is_still_there_when_its_owner_has_gone() -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=2)
    source = beams[0].block_table[2]
    scheduler.release(beams[0])
    scheduler.check()
    assert not scheduler.pool.is_free(source)
    step = scheduler.schedule()
    assert step.copies == [(source, beams[1].block_table[2], 2)]
    scheduler.commit(step)
    scheduler.check()
    assert scheduler.pool.is_free(source)


def test_reordering_copies_only_where_two_go_on_from_the_same() -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=3)
    scheduler.commit(scheduler.schedule())
    lasts = [beam.block_table[2] for beam in beams]
    scheduler.reorder(beams, [2, 0, 0])
    scheduler.check()
    assert [beam.token_ids[-1] for beam in beams] == [52, 50, 50]
    assert [beam.block_table[2] for beam in beams[:2]] == [lasts[2], lasts[0]]
    step = scheduler.schedule()
    assert step.copies == [(lasts[0], beams[2].block_table[2], 3)]
    assert scheduler.pool.num_used == 2 + 3


def test_what_was_to_be_copied_but_was_not_is_found_by_nobody() -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=2)
    scheduler.commit(scheduler.schedule())
    scheduler.reorder(beams, [0, 0])
    scheduler.release(beams[1])
    scheduler.check()
    scheduler.add(make_sequence(7, [*distinct(0, 10), 50, 7]))
    assert (7, 10, 2) in shape(scheduler.schedule())


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_a_preempted_group_of_which_nothing_is_cached_any_more_computes_what_it_shares_once(
    prefix_caching: bool,
) -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=3, prefix_caching=prefix_caching)
    scheduler.commit(scheduler.schedule())
    for beam in beams:
        beam.append(60 + beam.uid)
    scheduler._preempt(beams[0].group)
    scheduler.pool.free(scheduler.pool.allocate(32))
    steps = []
    while not steps or len(steps[-1]) < 3:
        step = scheduler.schedule()
        steps.append(shape(step))
        scheduler.check()
        scheduler.commit(step)
        scheduler.check()
    assert steps == [[(0, 0, 11)], [(1, 10, 1)], [(2, 10, 1)], [(0, 11, 1), (1, 11, 1), (2, 11, 1)]]


def test_nobody_waits_for_one_that_is_gone() -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=3)
    scheduler._preempt(beams[0].group)
    scheduler.pool.free(scheduler.pool.allocate(32))
    scheduler.add(make_sequence(7, distinct(0, 9)))
    assert shape(run_step(scheduler)) == [(0, 0, 10)], "the other is held back"
    for beam in beams:
        scheduler.release(beam)
    scheduler.check()
    assert shape(run_step(scheduler)) == [(7, 0, 9)]


def test_reordering_to_where_everyone_is_changes_nothing() -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=3)
    scheduler.commit(scheduler.schedule())
    before = [list(beam.block_table) for beam in beams]
    scheduler.reorder(beams, [0, 1, 2])
    assert [beam.block_table for beam in beams] == before
    assert scheduler.schedule().copies == []


def test_a_group_begins_only_when_there_is_room_for_all_it_may_become() -> None:
    scheduler = make_scheduler(max_running=3, num_blocks=100)
    scheduler.add(make_sequence(0, distinct(0, 3), max_new_tokens=9))
    scheduler.add(make_sequence(1, distinct(1, 3)), num_sequences=3)
    assert shape(run_step(scheduler)) == [(0, 0, 3)], "four may not run"
    assert scheduler.blocks_for_group(10, 7, 3) == 2 + 3 * 2
    narrow = make_scheduler(num_blocks=8)
    narrow.add(make_sequence(0, distinct(0, 4), max_new_tokens=4))
    narrow.add(make_sequence(1, distinct(1, 10), max_new_tokens=7), num_sequences=3)
    narrow.schedule()
    assert narrow._tables.num_promised_blocks + narrow.pool.num_used == 8
    narrow.check()


def test_a_member_may_leave_its_group() -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=3)
    scheduler.release(beams[1])
    scheduler.check()
    step = scheduler.schedule()
    assert shape(step) == [(0, 10, 1), (2, 10, 1)]
    assert len(step.copies) == 1
    scheduler.commit(step)
    for beam in (beams[0], beams[2]):
        scheduler.release(beam)
    scheduler.check()
    assert not scheduler.has_unfinished
    assert scheduler.pool.num_used == 0


def test_a_group_whose_tokens_do_not_fit_into_what_is_left_of_a_step_waits_for_the_next() -> None:
    scheduler, beams = start_group(num_prompt_tokens=10, num_sequences=3)
    assert scheduler._portions(beams[0].group, 2) == []
    assert scheduler._portions(beams[0].group, 3) == [(beam, 1) for beam in beams]
