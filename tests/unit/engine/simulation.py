"""A model and a KV cache of plain lists: what a scheduler's steps would compute, and whether it is right."""

from collections.abc import Callable, Iterable
from typing import Any

from gptj_batch import Request, SamplingParams
from gptj_batch.engine.config import Bounds
from gptj_batch.engine.scheduler import Scheduler, Step
from gptj_batch.engine.sequence import Sequence

POISON = 99
VOCAB_SIZE = 3


def never(generated: Any) -> bool:
    """Stop never; but the scheduler cannot know, and so promises less."""
    return False


def make_scheduler(**bounds: Any) -> Scheduler:
    defaults = {"max_step_tokens": 16, "max_running": 4, "block_size_tokens": 4, "num_blocks": 32}
    chosen = {**defaults, **bounds}
    return Scheduler(Bounds(**{"min_running": chosen["max_running"], **chosen}))


def make_sequence(uid: int, prompt: Iterable[int], max_new_tokens: int = 8, **sampling: Any) -> Sequence:
    is_sure = sampling.pop("is_sure", False)
    params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True, **sampling)
    stop = None if is_sure else never
    return Sequence(uid, Request(key=str(uid), prompt_token_ids=list(prompt), sampling=params, stop=stop))


def next_token(seen: list[int], turn: int = 0) -> int:
    """Choose a token by all that was seen, so that one wrong token in the cache shows."""
    return (sum((place + 1) * token for place, token in enumerate(seen)) * 7 + len(seen) + turn) % 11 % VOCAB_SIZE


def next_parents(seen: list[list[int]]) -> list[int]:
    """Choose whom each beam goes on from."""
    return [next_token([len(seen), *beam], turn) % len(seen) for turn, beam in enumerate(seen)]


def alone(prompt: list[int], max_new_tokens: int) -> list[int]:
    """Return what a request generates if it has all to itself."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def beams_alone(prompt: list[int], max_new_tokens: int, num_beams: int) -> list[list[int]]:
    """Return what a group generates if it has all to itself."""
    beams = [list(prompt) for _ in range(num_beams)]
    for count in range(max_new_tokens):
        if count:
            beams = [list(beams[parent]) for parent in next_parents(beams)]
        beams = [[*beam, next_token(beam, turn)] for turn, beam in enumerate(beams)]
    return [beam[len(prompt) :] for beam in beams]


class SimulatedEngine:
    """Run a scheduler's steps; every chunk must find exactly its sequence's tokens in the cache.

    A poisoned token spoils all of its chunk, as an infinity does. on_done: is given what finished, and its tokens; None
    where it was spoiled
    """

    def __init__(self, scheduler: Scheduler, on_done: Callable[[int, list[list[int]] | None], None]) -> None:
        self.scheduler = scheduler
        self.cache: dict[int, list[int | None]] = {}
        self.fed: list[tuple[int, ...]] = []
        self._on_done = on_done

    def step(self) -> Step:
        step = self.scheduler.schedule()
        self.scheduler.check()
        assert step.num_tokens == sum(chunk.num_tokens for chunk in step.chunks)
        assert step.num_tokens <= self.scheduler.bounds.max_step_tokens
        self._copy(step)
        self._write(step)
        seen = self._read(step)
        spoiled = {sequence for sequence, tokens in seen.items() if None in tokens}
        self.scheduler.commit(step, spoiled)
        for group in list(self.scheduler.running):
            members = [sequence for sequence in group.sequences if sequence in seen]
            assert members in ([], group.sequences), "the next tokens of a group are chosen after the same step"
            if members:
                self._advance(members, bool(spoiled.intersection(members)))
        self.scheduler.check()
        return step

    def _copy(self, step: Step) -> None:
        destinations = {copy.destination for copy in step.copies}
        assert len(destinations) == len(step.copies)
        assert destinations.isdisjoint(step.new_blocks)
        assert destinations.isdisjoint(copy.source for copy in step.copies)
        for block in step.new_blocks:
            self.cache[block] = []
        for source, destination, num_tokens in step.copies:
            assert len(self.cache[source]) >= num_tokens, "more is copied than there is"
            self.cache[destination] = self.cache[source][:num_tokens]

    def _write(self, step: Step) -> None:
        size = self.scheduler.bounds.block_size_tokens
        for chunk in step.chunks:
            tokens: list[int | None] = list(chunk.sequence.token_ids[chunk.start : chunk.start + chunk.num_tokens])
            if POISON in tokens:
                tokens = [None] * len(tokens)
            for place, token in enumerate(tokens, chunk.start):
                content = self.cache[chunk.sequence.block_table[place // size]]
                del content[place % size :]  # what stood there, another owner wrote
                assert len(content) == place % size, "a token is written behind a gap"
                content.append(token)
                self.fed.append(tuple(chunk.sequence.token_ids[: place + 1]))

    def _read(self, step: Step) -> dict[Sequence, list[int]]:
        """Return what each sequence whose next token is due sees."""
        due = {}
        for chunk in step.chunks:
            stop, sequence = chunk.start + chunk.num_tokens, chunk.sequence
            seen = [token for block in sequence.block_table for token in self.cache[block]][:stop]
            expected: list[int | None] = list(sequence.token_ids[:stop])
            if POISON in sequence.token_ids:
                expected = [None if found is None else token for token, found in zip(expected, seen, strict=True)]
            assert seen == expected, "a sequence sees other tokens than its own"
            if chunk.is_last:
                due[sequence] = seen
        return due  # type: ignore[return-value]

    def _advance(self, members: list[Sequence], is_spoiled: bool) -> None:
        first, group = members[0], members[0].group
        if is_spoiled:
            self._release(members, None)
            return
        if group.num_unborn:
            while group.num_unborn:
                self.scheduler.fork(first, Sequence(first.uid, first.request))
            members = list(group.sequences)
        elif len(members) > 1:
            self.scheduler.reorder(members, next_parents([member.token_ids for member in members]))
        for turn, member in enumerate(members):
            member.append(next_token(member.token_ids, turn))
        if len(first.generated_token_ids) == first.request.sampling.max_new_tokens:
            self._release(members, [member.generated_token_ids for member in members])

    def _release(self, members: list[Sequence], result: list[list[int]] | None) -> None:
        for member in members:
            self.scheduler.release(member)
        self._on_done(members[0].uid, result)
