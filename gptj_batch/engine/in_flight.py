"""InFlight: the prompts that are being computed, and the groups that are held back until they are."""

from gptj_batch.engine.prefix_tree import Match, Node
from gptj_batch.engine.sequence import Group, Sequence
from gptj_batch.engine.token_index import TokenIndex, num_common_tokens


class InFlight:
    """Know what running sequences are computing, so that nobody else computes it at the same time.

    A sequence that prefills (the leader) announces the first block that it computes. One that would begin in the same
    way is held back until the leader has prefilled, or is gone.
    """

    def __init__(self, block_size_tokens: int) -> None:
        self.held: set[Group] = set()
        self._block_size = block_size_tokens
        self._leaders: dict[Node, TokenIndex[Sequence]] = {}
        self._keys: dict[Sequence, tuple[Node, tuple[int, ...]]] = {}
        self._followers: dict[Sequence, list[Group]] = {}

    def announce(self, leader: Sequence, match: Match) -> None:
        """Note what a sequence that begins with `match` computes first."""
        tokens = self._next_block(leader, match)
        leaders = self._leaders.setdefault(match.node, TokenIndex())
        if tokens not in leaders:
            leaders.add(tokens, leader)
            self._keys[leader] = match.node, tokens

    def hold_back(self, group: Group, match: Match) -> bool:
        """Hold a group back if it pays to wait for another's tokens; say whether it does.

        match: what its first sequence would begin with now
        It pays from half a block on: a step's delay costs about what a few tokens do.
        """
        sequence = group.sequences[0]
        leaders = self._leaders.get(match.node)
        leader = leaders.closest(self._next_block(sequence, match))[0] if leaders is not None else None
        if leader is None:
            return False
        num_common = num_common_tokens(leader.token_ids[: leader.num_prefill_tokens], sequence.token_ids)
        num_gained = min(num_common, sequence.num_tokens - 1) - match.num_tokens
        if num_gained < max(1, self._block_size // 2):
            return False
        self._followers.setdefault(leader, []).append(group)
        self.held.add(group)
        return True

    def withdraw(self, leader: Sequence) -> list[Group]:
        """Forget a leader that has prefilled, or no longer runs, and return the groups that waited for it."""
        if leader not in self._keys:
            return []
        node, tokens = self._keys.pop(leader)
        self._leaders[node].remove(tokens)
        if len(self._leaders[node]) == 0:
            del self._leaders[node]
        groups = self._followers.pop(leader, [])
        self.held.difference_update(groups)
        return groups

    def remove(self, group: Group) -> None:
        """Forget a group that is held back."""
        self.held.discard(group)
        for followers in self._followers.values():
            if group in followers:
                followers.remove(group)

    def check(self, running: set[Sequence]) -> None:
        """Make sure that everyone waits for one that runs. Raises AssertionError, which only a bug can cause."""
        prefilling = {sequence for sequence in running if sequence.is_prefilling}
        assert prefilling.issuperset(self._keys), "a sequence that computes no prompt is said to do so"
        assert prefilling.issuperset(self._followers), "a group is held back for a sequence that computes no prompt"
        assert self.held == {group for followers in self._followers.values() for group in followers}

    def _next_block(self, sequence: Sequence, match: Match) -> tuple[int, ...]:
        """Return the tokens of the first block that is not known whole."""
        start = len(match.blocks) * self._block_size
        return tuple(sequence.token_ids[start : start + self._block_size])
