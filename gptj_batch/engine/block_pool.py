"""BlockPool: which blocks of the KV cache are free, and how many owners the others have. Integers only."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from gptj_batch.engine.prefix_tree import PrefixTree


class BlockPool:
    """Hand out block numbers 0 .. num_blocks - 1, let sequences share them, and take them back.

    A free block whose tokens are known stays in `tree`, where it can be found, until its turn comes to be used for
    something else. Those freed longest ago come first; since a sequence gives back its last block first, and owns all
    blocks before one that it owns, a block is always used up before the one that it continues.
    """

    def __init__(self, num_blocks: int, block_size_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_size_tokens = block_size_tokens
        self.tree = PrefixTree(block_size_tokens)
        self._num_owners = [0] * num_blocks
        # A stack, lowest number on top: what was freed last is used first, while it may still be in the CPU's caches.
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._known: OrderedDict[int, None] = OrderedDict()  # free, but in the tree; freed longest ago comes first

    @property
    def num_free(self) -> int:
        """Return how many blocks nobody owns."""
        return len(self._blank) + len(self._known)

    @property
    def num_used(self) -> int:
        """Return how many blocks are owned."""
        return self.num_blocks - self.num_free

    @property
    def capacity_tokens(self) -> int:
        """Return how many tokens all blocks together can hold."""
        return self.num_blocks * self.block_size_tokens

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks `num_tokens` tokens of one sequence take."""
        return -(-num_tokens // self.block_size_tokens)

    def is_free(self, block: int) -> bool:
        """Say whether nobody owns a block."""
        return self._num_owners[block] == 0

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks, forgetting what they held; the caller has made sure that so many are free."""
        assert 0 <= count <= self.num_free, f"{count} blocks asked for, {self.num_free} free"
        blocks = [self._blank.pop() if self._blank else self._forget_oldest() for _ in range(count)]
        for block in blocks:
            self._num_owners[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Give each block one more owner; free ones that are known may be had in this way too."""
        for block in blocks:
            if self._num_owners[block] == 0:
                del self._known[block]
            self._num_owners[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Take an owner from each block, the last of a sequence first; a block without one is free."""
        for block in blocks:
            self._num_owners[block] -= 1
            if self._num_owners[block] == 0:
                if block in self.tree:
                    self._known[block] = None
                else:
                    self._blank.append(block)

    def check(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Make sure that free and owned blocks are all blocks, and that each has as many owners as it should.

        block_tables: those of every sequence that owns blocks, and other lists of blocks that are owned
        Raises AssertionError, which only a bug can cause.
        """
        owners = Counter(block for table in block_tables for block in table)
        everywhere = sorted([*self._blank, *self._known, *owners])
        assert everywhere == list(range(self.num_blocks)), (
            f"of {self.num_blocks} blocks, {self.num_free} are free and {len(owners)} owned, "
            f"{len(everywhere) - len(set(everywhere))} of them are both"
        )
        for block, num_owners in enumerate(self._num_owners):
            assert num_owners == owners[block], f"block {block} has {owners[block]} owners, {num_owners} are noted"
        self.tree.check()
        assert not any(block in self.tree for block in self._blank), "a blank block is known to hold something"
        places = {block: place for place, block in enumerate(self._known)}
        for block, place in places.items():
            parent = self.tree.parent_of(block)
            assert parent not in places or places[parent] > place, "a block would be used up before its continuation"

    def _forget_oldest(self) -> int:
        block, _ = self._known.popitem(last=False)
        self.tree.remove(block)
        return block
