from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj_batch import Request, SamplingParams
from gptj_batch.engine.config import Bounds
from gptj_batch.engine.scheduler import Scheduler, Step
from gptj_batch.engine.sequence import Sequence


def make_scheduler(**bounds: Any) -> Scheduler:
    defaults = {"max_step_tokens": 16, "max_running": 4, "block_size_tokens": 4, "num_blocks": 32}
    return Scheduler(Bounds(**{**defaults, **bounds}))


def make_sequence(uid: int, num_tokens: int, max_new_tokens: int = 8) -> Sequence:
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    return Sequence(uid, Request(key=str(uid), prompt_token_ids=[0] * num_tokens, sampling=sampling))


def shape(step: Step) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.uid, chunk.start, chunk.num_tokens) for chunk in step.chunks]


def run_step(scheduler: Scheduler) -> Step:
    """Schedule, pretend to run, generate a token wherever one is due, and let go of what is done."""
    step = scheduler.schedule()
    scheduler.check()
    ending = [chunk.sequence for chunk in step.chunks if chunk.is_last]
    scheduler.commit(step)
    for sequence in ending:
        sequence.append(0)
        if len(sequence.generated_token_ids) == sequence.request.sampling.max_new_tokens:
            scheduler.release(sequence)
    scheduler.check()
    return step


def test_a_long_prompt_is_cut_into_chunks() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 40))
    assert [shape(run_step(scheduler)) for _ in range(4)] == [[(0, 0, 16)], [(0, 16, 16)], [(0, 32, 8)], [(0, 40, 1)]]


def test_decoding_comes_before_prompts_and_they_fill_what_is_left() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 3))
    run_step(scheduler)
    scheduler.add(make_sequence(1, 40))
    assert shape(run_step(scheduler)) == [(0, 3, 1), (1, 0, 15)]
    assert shape(run_step(scheduler)) == [(0, 4, 1), (1, 15, 15)]


def test_only_so_many_run_at_once_and_the_first_to_come_runs_first() -> None:
    scheduler = make_scheduler(max_running=2)
    for uid in range(3):
        scheduler.add(make_sequence(uid, 2, max_new_tokens=2))
    assert shape(run_step(scheduler)) == [(0, 0, 2), (1, 0, 2)]
    assert shape(run_step(scheduler)) == [(0, 2, 1), (1, 2, 1)]
    assert shape(run_step(scheduler)) == [(2, 0, 2)]


def test_a_prompt_waits_until_its_blocks_and_a_reserve_are_free() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add(make_sequence(0, 5))
    scheduler.add(make_sequence(1, 5))
    assert shape(run_step(scheduler)) == [(0, 0, 5)]
    assert scheduler.pool.num_free == 2


def test_blocks_come_only_as_tokens_do() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 40))
    assert len(run_step(scheduler).new_blocks) == 4
    assert scheduler.pool.num_used == 4


def test_without_memory_the_youngest_gives_way_and_is_fed_again_with_what_it_has_generated() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size_tokens=2)
    scheduler.add(make_sequence(0, 2, max_new_tokens=6))
    scheduler.add(make_sequence(1, 2, max_new_tokens=6))
    steps = [shape(run_step(scheduler)) for _ in range(9)]
    assert steps[:3] == [[(0, 0, 2), (1, 0, 2)], [(0, 2, 1), (1, 2, 1)], [(0, 3, 1), (1, 3, 1)]]
    assert steps[3:6] == [[(0, 4, 1)], [(0, 5, 1)], [(0, 6, 1)]]
    assert steps[6:] == [[(1, 0, 5)], [(1, 5, 1)], [(1, 6, 1)]]
    assert scheduler.num_preemptions == 1
    assert not scheduler.has_unfinished


def test_cancelling_frees_at_once() -> None:
    scheduler = make_scheduler(max_running=1)
    running, waiting = make_sequence(0, 9), make_sequence(1, 9)
    scheduler.add(running)
    scheduler.add(waiting)
    run_step(scheduler)
    scheduler.release(running)
    scheduler.release(waiting)
    scheduler.check()
    assert not scheduler.has_unfinished
    assert scheduler.pool.num_free == 32
    assert not running.is_live


def test_the_check_finds_a_lost_block() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence(0, 9)
    scheduler.add(sequence)
    run_step(scheduler)
    sequence.block_table.pop()
    with pytest.raises(AssertionError):
        scheduler.check()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 20)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 50), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(ACTIONS, st.integers(1, 20), st.integers(1, 6), st.integers(1, 8))
def test_whatever_arrives_and_is_cancelled_everything_else_finishes_and_no_block_is_lost(
    actions: list[tuple[str, int, int]], max_step_tokens: int, max_running: int, block_size: int
) -> None:
    num_blocks = -(-49 // block_size)  # the longest possible sequence just fits: memory is short all the time
    scheduler = make_scheduler(
        max_step_tokens=max_step_tokens,
        max_running=max_running,
        block_size_tokens=block_size,
        num_blocks=num_blocks,
    )
    everything: list[Sequence] = []
    cancelled: set[int] = set()
    for action, number, max_new_tokens in actions:
        if action == "add":
            everything.append(make_sequence(len(everything), number, max_new_tokens))
            scheduler.add(everything[-1])
        elif action == "cancel":
            live = list(scheduler)
            if live:
                sequence = live[number % len(live)]
                scheduler.release(sequence)
                cancelled.add(sequence.uid)
        else:
            for _ in range(number):
                run_step(scheduler)
    while scheduler.has_unfinished:
        assert run_step(scheduler).num_tokens > 0, "a step that does nothing will be followed by others like it"
    assert scheduler.pool.num_free == num_blocks
    for sequence in everything:
        wanted = sequence.request.sampling.max_new_tokens
        assert sequence.uid in cancelled or len(sequence.generated_token_ids) == wanted
