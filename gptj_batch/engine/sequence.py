"""Sequence: a request's changing state, from its prompt to its last token; Group: those that go through it together."""

from typing import NamedTuple

from gptj_batch.requests import ConstraintState, Request


class Sequence:
    """Hold what one request has become so far.

    uid: the engine's own number for it, in order of arrival; two live requests may have the same key.
    token_ids: the prompt and all that was generated.
    num_cached_tokens: how many of them have their keys and values in the KV cache.
    num_known_tokens: how many of those are known to be sound, since finite logits came of them.
    num_prefill_tokens: how many there were when it last began to run; it is prefilling until all these are cached.
    num_found_tokens: how many of its prompt were in the KV cache when it first ran; None before that.
    block_table: the blocks that hold those, in order; empty while the sequence waits.
    num_promised_blocks: how many more it is sure to take, which nobody else is let in on.
    group: those it runs with; alone, a group of one.
    constraint: where it stands in the request's constraint; None without one, and before its first token is chosen.
    is_live: False once it has finished, failed or been cancelled.
    """

    def __init__(self, uid: int, request: Request) -> None:
        self.uid = uid
        self.request = request
        self.token_ids = [int(token) for token in request.prompt_token_ids]
        self.generated_token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.num_prompt_tokens = len(self.token_ids)
        self.num_cached_tokens = 0
        self.num_known_tokens = 0
        self.num_prefill_tokens = self.num_prompt_tokens
        self.num_found_tokens: int | None = None
        self.block_table: list[int] = []
        self.num_promised_blocks = 0
        self.group = Group(self, 1)
        self.constraint: ConstraintState | None = None
        self.is_live = True

    @property
    def num_tokens(self) -> int:
        """Return how many tokens there are, prompt included."""
        return len(self.token_ids)

    @property
    def num_pending_tokens(self) -> int:
        """Return how many tokens must still be fed before the next one can be chosen."""
        return len(self.token_ids) - self.num_cached_tokens

    @property
    def is_prefilling(self) -> bool:
        """Say whether tokens are still to be fed that were there when it began to run."""
        return self.num_cached_tokens < self.num_prefill_tokens

    @property
    def max_tokens(self) -> int:
        """Return how many tokens it will have had fed at most; the last new one never is."""
        return self.num_prompt_tokens + self.request.sampling.max_new_tokens - 1

    @property
    def runs_to_the_end(self) -> bool:
        """Say whether nothing but max_new_tokens can end it."""
        sampling = self.request.sampling
        return sampling.ignore_eos and not sampling.stop_token_ids and self.request.stop is None

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        self.token_ids.append(token_id)
        self.generated_token_ids.append(token_id)

    def copy_tokens(self, other: "Sequence") -> None:
        """Become what `other` is, as far as tokens go."""
        self.token_ids = other.token_ids.copy()
        self.generated_token_ids = other.generated_token_ids.copy()
        self.logprobs = other.logprobs.copy()
        self.num_prefill_tokens = other.num_prefill_tokens

    def state(self) -> "State":
        """Return what `set_state` makes another sequence of."""
        return State(
            self.token_ids,
            self.generated_token_ids,
            self.logprobs,
            self.num_cached_tokens,
            self.num_known_tokens,
            self.num_prefill_tokens,
            self.block_table,
        )

    def set_state(self, state: "State") -> None:
        """Go on from what another sequence was, which then must become something else."""
        self.token_ids = state.token_ids
        self.generated_token_ids = state.generated_token_ids
        self.logprobs = state.logprobs
        self.num_cached_tokens = state.num_cached_tokens
        self.num_known_tokens = state.num_known_tokens
        self.num_prefill_tokens = state.num_prefill_tokens
        self.block_table = state.block_table


class State(NamedTuple):
    """All of a sequence that another one can take over."""

    token_ids: list[int]
    generated_token_ids: list[int]
    logprobs: list[float]
    num_cached_tokens: int
    num_known_tokens: int
    num_prefill_tokens: int
    block_table: list[int]


class Group:
    """Hold sequences that wait, run and are preempted together: one alone, or the beams of one request.

    sequences: those that there are; the first brings the prompt, the others split off from it.
    num_unborn: how many have yet to split off.
    max_new_tokens: how many all of them together may generate.
    reserves_all: whether all blocks that it can ever need are promised to it when it begins to run.
    num_promised_blocks: how many are promised to the unborn.
    rank: its place among all groups, lower first; given when the window that it waits in is opened.
    """

    def __init__(self, sequence: Sequence, num_sequences: int) -> None:
        self.sequences = [sequence]
        self.num_unborn = num_sequences - 1
        self.max_new_tokens = sequence.request.sampling.max_new_tokens * num_sequences
        self.reserves_all = num_sequences > 1 or sequence.runs_to_the_end
        self.num_promised_blocks = 0
        self.rank = -1
        self.is_running = False

    @property
    def size(self) -> int:
        """Return how many sequences it has or will have."""
        return len(self.sequences) + self.num_unborn

    @property
    def num_steps_left(self) -> int:
        """Return how many tokens its longest sequence may still generate."""
        return max(
            sequence.request.sampling.max_new_tokens - len(sequence.generated_token_ids) for sequence in self.sequences
        )

    def num_sure_tokens(self, sequence: Sequence) -> int:
        """Return how many tokens one of its sequences is sure to have fed in the end."""
        if self.reserves_all:
            return sequence.max_tokens
        min_new_tokens = max(1, sequence.request.sampling.min_new_tokens)
        return max(sequence.num_tokens, sequence.num_prompt_tokens + min_new_tokens - 1)
