"""Whatever arrives, is cancelled, forked, preempted or evicted: every sequence always finds its own tokens."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .simulation import (
    POISON,
    SimulatedEngine,
    alone,
    beams_alone,
    make_scheduler,
    make_sequence,
)

MAX_PROMPT, MAX_NEW, MAX_BEAMS = 24, 10, 3
LONG = [token * token % 3 for token in range(MAX_PROMPT)]
OTHER = [1, 1, 2, 0] * (MAX_PROMPT // 4)

PROMPTS = st.builds(
    lambda base, num_shared, own, is_poisoned: [*base[:num_shared], *own, *([POISON] if is_poisoned else [])],
    st.sampled_from([LONG, OTHER]),
    st.sampled_from([0, 3, 8, 9, 15, 18, 19]),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.sampled_from([False] * 9 + [True]),
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PROMPTS, st.integers(1, MAX_NEW), st.booleans(), st.sampled_from([1, 1, 1, 2, 3])),
        st.tuples(st.just("add"), PROMPTS, st.just(MAX_NEW), st.just(False), st.just(1)),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
    ),
    min_size=15,
    max_size=50,
)


class Scenario:
    """Do what a list of actions says, then let everything finish, and compare."""

    def __init__(self, **bounds: Any) -> None:
        self.scheduler = make_scheduler(**bounds)
        self.results: dict[int, list[list[int]] | None] = {}
        self.engine = SimulatedEngine(self.scheduler, self.results.__setitem__)
        self.expected: dict[int, list[list[int]] | None] = {}

    def add(self, prompt: list[int], max_new_tokens: int, is_sure: bool, num_beams: int) -> None:
        uid = len(self.expected)
        if POISON in prompt:
            self.expected[uid] = None
        elif num_beams == 1:
            self.expected[uid] = [alone(prompt, max_new_tokens)]
        else:
            self.expected[uid] = beams_alone(prompt, max_new_tokens, num_beams)
        self.scheduler.add(make_sequence(uid, prompt, max_new_tokens, is_sure=is_sure), num_beams)

    def cancel(self, number: int) -> None:
        live = sorted(self.scheduler, key=lambda sequence: sequence.uid)
        if live:
            group = live[number % len(live)].group
            del self.expected[live[number % len(live)].uid]
            self.expected[-1 - group.sequences[0].uid] = None  # so that numbers stay in order
            for sequence in list(group.sequences):
                self.scheduler.release(sequence)
            self.scheduler.check()

    def run(self, actions: list[tuple[Any, ...]]) -> None:
        for name, *arguments in actions:
            if name == "add":
                self.add(*arguments)
            elif name == "cancel":
                self.cancel(*arguments)
            else:
                for _ in range(arguments[0]):
                    self.engine.step()
        self.finish()

    def finish(self) -> None:
        while self.scheduler.has_unfinished:
            assert self.engine.step().num_tokens > 0, "a step that does nothing will be followed by others like it"
        assert self.scheduler.pool.num_used == 0
        assert self.scheduler._tables.num_promised_blocks == 0
        assert self.results == {uid: result for uid, result in self.expected.items() if uid >= 0}


@settings(max_examples=150, deadline=None)
@given(
    ACTIONS,
    st.integers(MAX_BEAMS, 20),
    st.integers(2, 6),
    st.integers(1, 6),
    st.sampled_from([0, 0, 1, 3, 30]),
    st.sampled_from([True, True, True, False]),
    st.booleans(),
)
def test_whatever_happens_every_sequence_finds_its_own_tokens_and_everything_finishes(
    actions: list[tuple[Any, ...]],
    max_step_tokens: int,
    max_running: int,
    block_size: int,
    num_more_blocks: int,
    prefix_caching: bool,
    has_groups: bool,
) -> None:
    """The cache is so small that the largest request just fits into it, or a little larger."""
    bounds = {"max_step_tokens": max_step_tokens, "max_running": max_running, "block_size_tokens": block_size}
    count = make_scheduler(**bounds).blocks_for_group
    if not has_groups:
        actions = [(*action[:4], 1) if action[0] == "add" else action for action in actions]
    sizes = [count(len(action[1]), action[2], action[4]) for action in actions if action[0] == "add"]
    num_blocks = max(sizes, default=1) + num_more_blocks
    Scenario(**bounds, num_blocks=num_blocks, prefix_caching=prefix_caching).run(actions)


@settings(max_examples=80, deadline=None)
@given(
    PROMPTS,
    st.lists(PROMPTS, min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(2, 3),
    st.integers(0, 8),
    st.data(),
)
def test_a_group_that_gives_way_to_older_ones_comes_back_whole(
    prompt: list[int], older: list[list[int]], block_size: int, num_beams: int, num_steps: int, data: st.DataObject
) -> None:
    bounds = {"max_step_tokens": data.draw(st.integers(3, 40)), "max_running": 9, "block_size_tokens": block_size}
    bounds["prefix_caching"] = data.draw(st.booleans())
    count = make_scheduler(**bounds).blocks_for_group
    num_now = sum(count(len(other) + data.draw(st.integers(0, 2)), 1, 1) for other in older) + 1
    scenario = Scenario(**bounds, num_blocks=count(len(prompt), MAX_NEW, num_beams) + num_now)
    scenario.run([*(("add", other, MAX_NEW, False, 1) for other in older), ("step", 2)])
    for other in older:
        scenario.add(other, MAX_NEW, False, 1)
    scenario.engine.step()
    scenario.add(prompt, MAX_NEW, True, num_beams)
    scenario.run([("step", num_steps)])


@settings(max_examples=50, deadline=None)
@given(ACTIONS)
def test_sequences_whose_length_is_known_are_never_preempted(actions: list[tuple[Any, ...]]) -> None:
    scenario = Scenario(num_blocks=30)
    scenario.run([(*action[:3], True, action[4]) if action[0] == "add" else action for action in actions])
    assert scenario.scheduler.num_preemptions == 0


@pytest.mark.parametrize("num_shared", [0, 3, 4, 21, 40])
@pytest.mark.parametrize("max_step_tokens", [7, 16, 200])
def test_with_room_for_all_what_prompts_share_is_computed_once(num_shared: int, max_step_tokens: int) -> None:
    """Sharing begins at half a block, here two tokens; generated tokens may coincide and are left out."""
    scenario = Scenario(num_blocks=300, max_running=20, max_step_tokens=max_step_tokens)
    base = [place * place % 5 % 3 for place in range(num_shared)]
    prompts = [[*base, 3 + number, *[number % 3] * (number % 6)] for number in range(20)]
    for prompt in prompts:
        scenario.add(prompt, 4, True, 1)
    scenario.finish()
    fed = [
        tokens for tokens in scenario.engine.fed if any(tokens == tuple(prompt[: len(tokens)]) for prompt in prompts)
    ]
    assert len(fed) == len(set(fed))
    total = sum(len(prompt) + 4 - 1 for prompt in prompts)
    assert scenario.scheduler.num_fed_tokens + scenario.scheduler.num_cached_prompt_tokens == total
