"""Scheduler: which tokens of which sequences go into the next step. Integers only, no tensors."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from gptj_batch.engine.block_pool import BlockPool
from gptj_batch.engine.config import Bounds
from gptj_batch.engine.sequence import Sequence


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
    """What one forward pass holds. `new_blocks` are those that were handed out for it."""

    chunks: list[Chunk] = field(default_factory=list)
    new_blocks: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_preempted: int = 0


class Scheduler:
    """Keep the waiting and the running sequences, and the blocks that the running ones own.

    Running sequences come first, oldest first; what is left of the step's tokens goes to those that wait, in order of
    arrival. So a step mixes decoding (one token each) with chunks of prompts. Blocks are handed out as tokens come;
    when they run out, the youngest running sequence gives up its own, waits at the head of the queue, and is prefilled
    again later, prompt and generated tokens alike. The oldest therefore always gets on, and everything finishes.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.pool = BlockPool(bounds.num_blocks, bounds.block_size_tokens)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_unfinished(self) -> bool:
        """Say whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """Choose the tokens of the next step, and give each of them a block."""
        step = Step()
        self._continue_running(step)
        if step.num_preempted == 0:
            self._admit_waiting(step)
        return step

    def commit(self, step: Step) -> None:
        """Note that the step has run: its tokens are in the KV cache."""
        for chunk in step.chunks:
            chunk.sequence.num_cached_tokens += chunk.num_tokens

    def release(self, sequence: Sequence) -> None:
        """Let go of a sequence that has finished, failed or been cancelled; its blocks are free at once."""
        sequence.is_live = False
        if sequence.block_table:
            self._give_back_blocks(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def check(self) -> None:
        """Make sure that the books are right. Raises AssertionError, which only a bug can cause."""
        assert all(sequence.is_live for sequence in self), "a sequence that has finished is still scheduled"
        assert len(self.running) <= self.bounds.max_running, "too many sequences run"
        assert not any(sequence.block_table for sequence in self.waiting), "a waiting sequence owns blocks"
        for sequence in self.running:
            room = len(sequence.block_table) * self.bounds.block_size_tokens
            assert sequence.num_cached_tokens <= room, "tokens are cached outside the sequence's blocks"
        self.pool.check(sequence.block_table for sequence in self.running)

    def _continue_running(self, step: Step) -> None:
        index = 0
        while index < len(self.running) and step.num_tokens < self.bounds.max_step_tokens:
            sequence = self.running[index]
            num_tokens = min(sequence.num_pending_tokens, self.bounds.max_step_tokens - step.num_tokens)
            if self._make_room(sequence, num_tokens, step):
                self._take(sequence, num_tokens, step)
                index += 1

    def _admit_waiting(self, step: Step) -> None:
        """Let those that wait begin, in order, while all that each brings fits into what the running ones leave.

        While tokens are left in the step, no running sequence is short of blocks for the tokens it has.
        """
        while self.waiting and len(self.running) < self.bounds.max_running:
            sequence, budget = self.waiting[0], self.bounds.max_step_tokens - step.num_tokens
            needed = self._missing_blocks(sequence, sequence.num_pending_tokens)
            if budget == 0 or needed > self.pool.num_free - self._reserved_blocks():
                return
            self.running.append(self.waiting.popleft())
            self._take(sequence, min(sequence.num_pending_tokens, budget), step)

    def _reserved_blocks(self) -> int:
        """Return how many blocks stay free for the growth of those that run; none when nothing does.

        With a quarter of a block each, a new sequence is not admitted only to be preempted a few steps later.
        """
        return -(-len(self.running) // 4)

    def _make_room(self, sequence: Sequence, num_tokens: int, step: Step) -> bool:
        """Preempt the youngest until `num_tokens` more fit; return False if `sequence` itself had to go."""
        while self._missing_blocks(sequence, num_tokens) > self.pool.num_free:
            victim = self.running.pop()
            self._give_back_blocks(victim)
            victim.num_cached_tokens = 0
            self.waiting.appendleft(victim)
            self.num_preemptions += 1
            step.num_preempted += 1
            if victim is sequence:
                return False
        return True

    def _take(self, sequence: Sequence, num_tokens: int, step: Step) -> None:
        """Put the next `num_tokens` of a sequence into the step."""
        blocks = self.pool.allocate(self._missing_blocks(sequence, num_tokens))
        sequence.block_table += blocks
        step.new_blocks += blocks
        step.chunks.append(Chunk(sequence, sequence.num_cached_tokens, num_tokens))
        step.num_tokens += num_tokens

    def _missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Return how many blocks the next `num_tokens` of a sequence need beyond those it owns."""
        return max(0, self.pool.blocks_for(sequence.num_cached_tokens + num_tokens) - len(sequence.block_table))

    def _give_back_blocks(self, sequence: Sequence) -> None:
        self.pool.free(reversed(sequence.block_table))
        sequence.block_table = []
