"""BlockTables: which blocks hold which sequence's tokens; what is shared, copied, and promised. Integers only."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from gptj_batch.engine.block_pool import BlockPool
from gptj_batch.engine.config import Bounds
from gptj_batch.engine.prefix_tree import Match
from gptj_batch.engine.sequence import Group, Sequence
from gptj_batch.engine.token_index import num_common_tokens


class Copy(NamedTuple):
    """The first tokens of a block, to be copied into another before the step's own tokens are written."""

    source: int
    destination: int
    num_tokens: int


class BlockTables:
    """Give sequences their blocks.

    Whole blocks are shared by all sequences that begin with the same tokens; the block that a sequence writes to next
    is its own. With prefix caching, a full block is known (see `BlockPool.tree`), and so is a prompt's last one, once
    the logits behind its tokens have been seen to be finite: an infinity spoils the tokens before it too (0 times
    infinity in attention), and those who share them must not fail with the request that brought it. Of two known
    blocks with the same content only one is kept.

    copies: those that the next step must make, by their destination. Each owns its source until it is done.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.pool = BlockPool(bounds.num_blocks, bounds.block_size_tokens)
        self.copies: dict[int, Copy] = {}
        self.num_promised_blocks = 0
        self._block_size = bounds.block_size_tokens
        self._is_caching = bounds.prefix_caching

    def find(self, sequence: Sequence) -> Match:
        """Return what is known of a sequence's tokens; its last one must be fed in any case."""
        max_tokens = sequence.num_tokens - 1 if self._is_caching else 0
        return self.pool.tree.match(sequence.token_ids, max_tokens)

    def without_copy(self, match: Match) -> Match:
        """Return a match that shares whole blocks only."""
        num_tokens = len(match.blocks) * self._block_size
        return match._replace(source=None, num_copied_tokens=0, num_tokens=num_tokens)

    def num_needed_blocks(self, group: Group, match: Match) -> int:
        """Return how many free blocks a group takes, now and until its end, if its first sequence begins with `match`.

        Sequences that split off share at least the whole blocks of the prompt.
        """
        first = group.sequences[0]
        num_revived = sum(map(self.pool.is_free, match.blocks))
        num_kept = int(match.source is not None and self.pool.is_free(match.source))
        num_new = self._num_final_blocks(first) - len(match.blocks)
        return num_new + (group.size - 1) * self._num_own_blocks(first) + num_revived + num_kept

    def begin(self, group: Group, match: Match) -> None:
        """Let a group's first sequence begin with `match`, and promise the group all that it is sure to need."""
        first, *others = group.sequences
        self._begin(first, match)
        for sequence in others:
            self._promise(sequence, self._num_own_blocks(sequence))
        self._promise(group, group.num_unborn * self._num_own_blocks(first))

    def begin_again(self, sequence: Sequence) -> None:
        """Let a preempted member of a group share what the members before it have fed again, or what is known."""
        siblings = [other for other in sequence.group.sequences if other is not sequence]
        best = max(siblings, key=lambda other: _num_shared(sequence, other))
        match = self.find(sequence)
        if match.num_tokens > _num_shared(sequence, best):
            self._begin(sequence, match if self.pool.num_free > len(match.blocks) + 1 else self.without_copy(match))
        else:
            self._share(sequence, best, _num_shared(sequence, best))
        sequence.num_prefill_tokens = sequence.num_tokens

    def num_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Return how many blocks the next `num_tokens` of a sequence need beyond those it owns."""
        return max(0, self.pool.blocks_for(sequence.num_cached_tokens + num_tokens) - len(sequence.block_table))

    def grow(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Give a sequence the blocks that its next `num_tokens` need, and return those that are new."""
        num_missing = self.num_missing(sequence, num_tokens)
        if num_missing == 0:
            return []
        blocks = self.pool.allocate(num_missing)
        sequence.block_table += blocks
        self._promise(sequence, sequence.num_promised_blocks - num_missing)
        return blocks

    def know(self, sequence: Sequence, *, is_prompt: bool) -> None:
        """Make findable what a sequence has cached, now that it is known to be sound.

        is_prompt: whether the tokens behind its last full block are so too; generated ones change too often
        """
        first, stop = (n // self._block_size for n in (sequence.num_known_tokens, sequence.num_cached_tokens))
        sequence.num_known_tokens = sequence.num_cached_tokens
        if self._is_caching:
            for index in range(first, stop):
                self._know_full(sequence, index)
            if is_prompt:
                self._know_last(sequence)

    def finish_copies(self, copies: Iterable[Copy]) -> None:
        """Note that a step has made its copies."""
        for copy in copies:
            if copy.destination in self.copies:
                self._forget_copy(copy.destination)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, which owns nothing, go on from what `parent` is now.

        Whole blocks are shared and the last one is copied. Where no block is free for that, the tokens in it are fed
        again.
        """
        child.copy_tokens(parent)
        self._share(child, parent, parent.num_cached_tokens)

    def bear(self, group: Group) -> None:
        """Give back what was promised to one of a group's unborn sequences, which is now on its own."""
        if group.num_unborn:
            group.num_unborn -= 1
            self._promise(group, group.num_unborn * self._num_own_blocks(group.sequences[0]))

    def expect(self, group: Group) -> None:
        """Promise a group what one more unborn sequence will need, in place of one that it has lost."""
        group.num_unborn += 1
        self._promise(group, group.num_unborn * self._num_own_blocks(group.sequences[0]))

    def reorder(self, sequences: list[Sequence], parents: list[int]) -> None:
        """Let each sequence go on from what `sequences[parents[i]]` was; see `Scheduler.reorder`."""
        before = [sequence.state() for sequence in sequences]
        for index in set(range(len(sequences))).difference(parents):
            self.drop(sequences[index], is_known=False)  # first, so that its blocks serve the copies
        # What a parent owns moves to one child, itself where it is one; only the others need a copy of its last block.
        heirs = {parent: parent if parents[parent] == parent else parents.index(parent) for parent in parents}
        for parent, child in heirs.items():
            sequences[child].set_state(before[parent])
        for child, parent in enumerate(parents):
            if heirs[parent] != child:
                self.fork(sequences[heirs[parent]], sequences[child])
        for sequence in sequences:
            self._promise(sequence, self._num_final_blocks(sequence) - len(sequence.block_table))

    def drop(self, sequence: Sequence, *, is_known: bool = True) -> None:
        """Take back a sequence's blocks and what was promised to it.

        is_known: whether what is in its last block can be found from now on; whole blocks are known anyway
        """
        unmade = [block for block in sequence.block_table if block in self.copies] if self.copies else []
        for block in unmade:
            self._forget_copy(block)
        is_sound = sequence.num_known_tokens == sequence.num_cached_tokens
        if is_known and is_sound and self._is_caching and not unmade:
            self._know_last(sequence)
        self.pool.free(reversed(sequence.block_table))
        sequence.block_table = []
        sequence.num_cached_tokens = sequence.num_known_tokens = 0
        self._promise(sequence, 0)

    def drop_unborn(self, group: Group) -> None:
        """Take back what was promised to sequences that had yet to split off."""
        self._promise(group, 0)

    def check(self, groups: Iterable[Group]) -> None:
        """Make sure that the running groups' books are right. Raises AssertionError, which only a bug can cause."""
        groups = list(groups)
        sequences = [sequence for group in groups for sequence in group.sequences]
        self.pool.check([*(sequence.block_table for sequence in sequences), self._sources()])
        promised = sum(group.num_promised_blocks for group in groups)
        promised += sum(sequence.num_promised_blocks for sequence in sequences)
        assert promised == self.num_promised_blocks, f"{promised} blocks are promised, {self.num_promised_blocks} noted"
        owners = Counter(block for sequence in sequences for block in sequence.block_table)
        for sequence in sequences:
            num_full = sequence.num_cached_tokens // self._block_size
            assert len(sequence.block_table) >= self.pool.blocks_for(sequence.num_cached_tokens), (
                "tokens without a block"
            )
            assert all(owners[block] == 1 for block in sequence.block_table[num_full:]), "two would write to one block"
            if self._is_caching:
                self._check_known(sequence)

    def _check_known(self, sequence: Sequence) -> None:
        before = None
        for index, block in enumerate(sequence.block_table[: sequence.num_known_tokens // self._block_size]):
            start = index * self._block_size
            held = sequence.token_ids[start : start + self._block_size]
            assert self.pool.tree.tokens_of(block) == tuple(held), "a block is known for other tokens than it holds"
            assert self.pool.tree.parent_of(block) == before, "a block is known behind another than it stands behind"
            before = block

    def _sources(self) -> list[int]:
        return [copy.source for copy in self.copies.values()]

    def _begin(self, sequence: Sequence, match: Match) -> None:
        self.pool.share(match.blocks)
        sequence.block_table = match.blocks.copy()
        sequence.num_cached_tokens = sequence.num_known_tokens = match.num_tokens
        sequence.num_prefill_tokens = sequence.num_tokens
        if match.source is not None:
            self._copy(sequence, match.source, match.num_copied_tokens)
        self._promise(sequence, self._num_final_blocks(sequence) - len(sequence.block_table))

    def _share(self, child: Sequence, parent: Sequence, num_tokens: int) -> None:
        """Let `child` share the first `num_tokens` that `parent` has in the cache."""
        num_whole, num_rest = divmod(num_tokens, self._block_size)
        child.block_table = parent.block_table[:num_whole]
        self.pool.share(child.block_table)
        child.num_cached_tokens = num_whole * self._block_size
        if num_rest and self.pool.num_free:
            self._copy(child, parent.block_table[num_whole], num_rest)
            child.num_cached_tokens = num_tokens
        child.num_known_tokens = min(child.num_cached_tokens, parent.num_known_tokens)
        self._promise(child, self._num_final_blocks(child) - len(child.block_table))

    def _copy(self, sequence: Sequence, source: int, num_tokens: int) -> None:
        """Let a sequence's next block begin as a copy; of a copy not yet made, that is one of the same source."""
        if source in self.copies:
            source = self.copies[source].source
        self.pool.share([source])  # before the allocation, which could use it up
        (block,) = self.pool.allocate(1)
        self.copies[block] = Copy(source, block, num_tokens)
        sequence.block_table.append(block)

    def _forget_copy(self, destination: int) -> None:
        self.pool.free([self.copies.pop(destination).source])

    def _know_full(self, sequence: Sequence, index: int) -> None:
        """Make block `index` of a sequence findable; if another with the same content is known, use that one."""
        table, start = sequence.block_table, index * self._block_size
        tokens = tuple(sequence.token_ids[start : start + self._block_size])
        own = table[index]
        known = self.pool.tree.insert(table, index, tokens)
        if known != own:
            self.pool.share([known])
            self.pool.free([own])
            table[index] = known

    def _know_last(self, sequence: Sequence) -> None:
        """Make the tokens behind a sequence's last full block findable."""
        num_whole, num_rest = divmod(sequence.num_cached_tokens, self._block_size)
        if num_rest:
            tokens = tuple(sequence.token_ids[num_whole * self._block_size : sequence.num_cached_tokens])
            self.pool.tree.insert(sequence.block_table, num_whole, tokens)

    def _promise(self, owner: Sequence | Group, num_blocks: int) -> None:
        num_blocks = max(0, num_blocks)
        self.num_promised_blocks += num_blocks - owner.num_promised_blocks
        owner.num_promised_blocks = num_blocks

    def _num_final_blocks(self, sequence: Sequence) -> int:
        return self.pool.blocks_for(sequence.group.num_sure_tokens(sequence))

    def _num_own_blocks(self, sequence: Sequence) -> int:
        """Return how many blocks a sequence that split off may own beside those of the prompt that all share."""
        return self._num_final_blocks(sequence) - sequence.num_prompt_tokens // self._block_size


def _num_shared(sequence: Sequence, other: Sequence) -> int:
    """Return how many tokens `other` has in the cache that `sequence` begins with and need not feed."""
    num_common = num_common_tokens(sequence.token_ids, other.token_ids)
    return min(num_common, other.num_cached_tokens, sequence.num_tokens - 1)
