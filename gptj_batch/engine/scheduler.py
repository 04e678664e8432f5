"""Scheduler: which tokens of which sequences go into the next step. Integers only, no tensors."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace

from gptj_batch.engine.block_pool import BlockPool
from gptj_batch.engine.block_tables import BlockTables, Copy
from gptj_batch.engine.config import Bounds
from gptj_batch.engine.in_flight import InFlight
from gptj_batch.engine.prefix_tree import Match
from gptj_batch.engine.sequence import Group, Sequence
from gptj_batch.engine.waiting import Waiting

# A step is never made smaller than this: weights are read in every one.
_MIN_STEP_TOKENS = 16

Portion = tuple[Sequence, int]
"""A sequence and how many of its tokens are to be fed."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens [start, start + num_tokens) of a sequence, all of which have a block to go to."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """Say whether the sequence's next token can be chosen after this chunk."""
        return self.start + self.num_tokens == self.sequence.num_tokens


@dataclass(slots=True)
class Step:
    """What one forward pass holds.

    new_blocks: those that were handed out for it, to be cleared first
    copies: to be made before the pass; their destinations are not among new_blocks
    """

    chunks: list[Chunk] = field(default_factory=list)
    new_blocks: list[int] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    num_tokens: int = 0
    num_preempted: int = 0


class Scheduler:
    """Keep the waiting and the running sequences, and the blocks that the running ones own.

    Running groups come first, oldest first; what is left of the step's tokens goes to those that wait (see `Waiting`
    for their order). So a step mixes decoding (one token each) with chunks of prompts. A group begins when all blocks
    that it is sure to need are free and promised to nobody else, and it begins with what is cached of its prompt; one
    whose prompt is just being computed by another is held back (see `InFlight`). Blocks are handed out as tokens come.

    Where outputs may end early, the promises do not cover all they may grow to; when blocks run out, the youngest
    running group gives up its own, waits again, and is prefilled again later, prompt and generated tokens alike, as
    far as that is not still cached. The oldest therefore always gets on, and everything finishes.

    num_fed_tokens, num_cached_prompt_tokens: tokens that went through the model, and tokens of prompts that did not
    have to, since they were found in the cache when their request first ran.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.running: list[Group] = []
        self.num_preemptions = 0
        self.num_fed_tokens = 0
        self.num_cached_prompt_tokens = 0
        self._tables = BlockTables(bounds)
        self._waiting = Waiting()
        self._in_flight = InFlight(bounds.block_size_tokens)

    @property
    def pool(self) -> BlockPool:
        """Return the blocks."""
        return self._tables.pool

    @property
    def has_unfinished(self) -> bool:
        """Say whether any sequence waits or runs."""
        return bool(self.running or self._in_flight.held or len(self._waiting))

    def __iter__(self) -> Iterator[Sequence]:
        for groups in (self.running, self._in_flight.held, self._waiting):
            for group in groups:
                yield from group.sequences

    def add(self, sequence: Sequence, num_sequences: int = 1) -> None:
        """Let a sequence wait for its turn, and with it those that will split off from it (see `fork`).

        num_sequences: how many there will be in its group, it itself counted; `Limits` lets no group in that can
        never run (see `blocks_for_group`, and max_step_tokens, max_running)
        """
        assert num_sequences <= self.bounds.max_step_tokens, "a group must fit into one step"
        sequence.group = Group(sequence, num_sequences)
        self._waiting.add(sequence.group)

    def blocks_for_group(self, num_prompt_tokens: int, max_new_tokens: int, num_sequences: int) -> int:
        """Return how many blocks a group can take at most; only where there are so many may it be added."""
        num_blocks = self.pool.blocks_for(num_prompt_tokens + max_new_tokens - 1)
        num_shared = num_prompt_tokens // self.bounds.block_size_tokens
        return num_blocks + (num_sequences - 1) * (num_blocks - num_shared)

    def schedule(self) -> Step:
        """Choose the tokens of the next step, and give each of them a block."""
        step = Step()
        self._continue_running(step)
        if step.num_preempted == 0:
            self._admit_waiting(step)
        if step.chunks and self._tables.copies:
            step.copies = list(self._tables.copies.values())
        return step

    def commit(self, step: Step, spoiled: Container[Sequence] = ()) -> None:
        """Note that the step has run: its tokens are in the KV cache.

        spoiled: sequences whose logits were not finite; nobody will be given what they have cached
        """
        if step.copies:
            self._tables.finish_copies(step.copies)
        self.num_fed_tokens += step.num_tokens
        for chunk in step.chunks:
            sequence, is_last = chunk.sequence, chunk.is_last
            is_prompt = sequence.is_prefilling
            sequence.num_cached_tokens += chunk.num_tokens
            if is_last and sequence not in spoiled:
                self._tables.know(sequence, is_prompt=is_prompt)
            if is_last and is_prompt:
                self._put_back(self._in_flight.withdraw(sequence))

    def retreat(self) -> bool:
        """Take back a step that was scheduled and could not be run: all that ran waits again, to be prefilled anew.

        From now on a step holds half as many tokens. Returns False where a step cannot be made smaller.
        """
        while self.running:
            self._preempt(self.running[-1])
        largest = max((group.size for group in (*self._in_flight.held, *self._waiting)), default=1)
        num_tokens = max(self.bounds.max_step_tokens // 2, largest, min(_MIN_STEP_TOKENS, self.bounds.max_step_tokens))
        is_smaller = num_tokens < self.bounds.max_step_tokens
        self.bounds = replace(self.bounds, max_step_tokens=num_tokens)
        return is_smaller

    def release(self, sequence: Sequence) -> None:
        """Let go of a sequence that has finished, failed or been cancelled; its blocks are free at once."""
        sequence.is_live = False
        group = sequence.group
        if group.is_running:
            self._stop(sequence)
        group.sequences.remove(sequence)
        if group.sequences:
            return
        if group.is_running:
            self._tables.drop_unborn(group)
            self.running.remove(group)
        elif group in self._in_flight.held:
            self._in_flight.remove(group)
        else:
            self._waiting.remove(group)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let a new sequence go on from where `parent` is, and run in its group from now on.

        Call it between `commit` and the next `schedule`, on a running sequence, before the tokens that set the two
        apart are appended. `child` takes over the tokens, and shares the blocks; what of them must be copied, the next
        step copies.
        """
        assert parent.group.is_running, "only a running sequence can be forked"
        child.group = parent.group
        child.group.sequences.append(child)
        self._tables.bear(child.group)
        self._tables.fork(parent, child)

    def prune(self, sequence: Sequence) -> None:
        """Take one of several sequences out of a running group; its place is kept for one to be forked later."""
        group = sequence.group
        assert group.is_running and len(group.sequences) > 1, "the last sequence of a group is released with it"
        sequence.is_live = False
        self._stop(sequence)
        group.sequences.remove(sequence)
        self._tables.expect(group)

    def reorder(self, sequences: list[Sequence], parents: list[int]) -> None:
        """Let each sequence go on from what another was: `sequences[i]` from `sequences[parents[i]]`.

        All take over their parents' tokens and blocks: whole blocks are shared, the last one moves to one child and is
        copied for the others. Call it like `fork`, for beams: before each one's new token is appended.
        """
        assert len(sequences) == len(parents), "every sequence needs a parent"
        if any(parent != child for child, parent in enumerate(parents)):
            self._tables.reorder(sequences, parents)

    def check(self) -> None:
        """Make sure that the books are right. Raises AssertionError, which only a bug can cause."""
        assert all(sequence.is_live for sequence in self), "a sequence that has finished is still scheduled"
        assert self._num_running() <= self.bounds.max_running or len(self.running) == 1, "too many sequences run"
        for group in (*self._in_flight.held, *self._waiting):
            assert not group.is_running, "a group runs and waits"
            assert not any(sequence.block_table for sequence in group.sequences), "a waiting sequence owns blocks"
        self._in_flight.check({sequence for group in self.running for sequence in group.sequences})
        self._tables.check(self.running)

    def _continue_running(self, step: Step) -> None:
        index = 0
        while index < len(self.running) and step.num_tokens < self.bounds.max_step_tokens:
            group = self.running[index]
            portions = self._portions(group, self.bounds.max_step_tokens - step.num_tokens)
            if self._make_room(group, portions, step):
                self._take(portions, step)
                index += 1

    def _portions(self, group: Group, budget: int) -> list[Portion]:
        """Return how many tokens of which of a group's sequences to feed now.

        The next tokens of all are chosen after the same step. So if some lag behind, as all do after a preemption,
        they are brought up to their last token one by one; only then does each feed that.
        """
        if len(group.sequences) == 1:
            return [(group.sequences[0], min(group.sequences[0].num_pending_tokens, budget))]
        for sequence in group.sequences:
            if sequence.num_cached_tokens == 0 and sequence.num_tokens > 1 and sequence is not group.sequences[0]:
                self._tables.begin_again(sequence)
            if sequence.num_pending_tokens > 1:
                return [(sequence, min(sequence.num_pending_tokens - 1, budget))]
        return [(sequence, 1) for sequence in group.sequences] if budget >= len(group.sequences) else []

    def _make_room(self, group: Group, portions: list[Portion], step: Step) -> bool:
        """Preempt the youngest until the portions fit; return False if `group` itself had to go."""
        num_missing = sum(self._tables.num_missing(sequence, num_tokens) for sequence, num_tokens in portions)
        while num_missing > self.pool.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            step.num_preempted += 1
            if victim is group:
                return False
        return True

    def _preempt(self, group: Group) -> None:
        for sequence in group.sequences:
            self._stop(sequence)
        self._tables.drop_unborn(group)
        self.running.remove(group)
        group.is_running = False
        self._waiting.put_back(group)
        self.num_preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        self._put_back(self._in_flight.withdraw(sequence))
        self._tables.drop(sequence)

    def _put_back(self, groups: list[Group]) -> None:
        for group in groups:
            self._waiting.put_back(group)

    def _admit_waiting(self, step: Step) -> None:
        """Let those that wait begin, in order, while all that each is sure to need is free and promised to nobody.

        The scan ends when as many are held back as could run: more could not begin in the next step either.
        """
        if not self._waiting:
            return
        num_running, num_open = self._num_running(), sum(not group.reserves_all for group in self.running)
        max_running = self._num_wanted()
        while step.num_tokens < self.bounds.max_step_tokens and len(self._in_flight.held) < self.bounds.max_running:
            group = self._waiting.first()
            if group is None or (num_running and num_running + group.size > max_running):
                return
            match = self._tables.find(group.sequences[0])
            if self._in_flight.hold_back(group, match):
                self._waiting.take_first()
                continue
            # A quarter of a block for each that may grow further than was promised: so that a new sequence is not
            # admitted only to be preempted a few steps later.
            num_in_reserve = -(-num_open // 4)
            num_available = self.pool.num_free - self._tables.num_promised_blocks - num_in_reserve
            if self._tables.num_needed_blocks(group, match) > num_available:
                match = self._tables.without_copy(match)
                if self._tables.num_needed_blocks(group, match) > num_available:
                    return
            self._begin(self._waiting.take_first(), match)
            self._take(self._portions(group, self.bounds.max_step_tokens - step.num_tokens), step)
            num_running += group.size
            num_open += not group.reserves_all

    def _num_wanted(self) -> int:
        """Return how many sequences are to run at the same time, while others wait.

        The longest output sets how many steps there will be at least. As many as will fill these with what is left to
        generate are enough; with more, most would be done early, and the last steps would run nearly empty.
        """
        longest = self._waiting.first()
        num_steps = [group.num_steps_left for group in (*self.running, *([] if longest is None else [longest]))]
        num_left = self._waiting.max_new_tokens + sum(group.num_steps_left * group.size for group in self.running)
        num_enough = -(-num_left // max(num_steps, default=1))
        return min(self.bounds.max_running, max(self.bounds.min_running, num_enough))

    def _begin(self, group: Group, match: Match) -> None:
        sequence = group.sequences[0]
        if sequence.num_found_tokens is None:
            sequence.num_found_tokens = match.num_tokens
            self.num_cached_prompt_tokens += match.num_tokens
        self._tables.begin(group, match)
        group.is_running = True
        self.running.append(group)
        if self.bounds.prefix_caching:
            self._in_flight.announce(sequence, match)

    def _take(self, portions: list[Portion], step: Step) -> None:
        """Put tokens into the step; there is room for them."""
        for sequence, num_tokens in portions:
            step.new_blocks += self._tables.grow(sequence, num_tokens)
            step.chunks.append(Chunk(sequence, sequence.num_cached_tokens, num_tokens))
            step.num_tokens += num_tokens

    def _num_running(self) -> int:
        return sum(group.size for group in self.running)
