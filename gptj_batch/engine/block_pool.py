"""BlockPool: which blocks of the KV cache are free. Integers only."""

from collections.abc import Iterable, Sequence


class BlockPool:
    """Hand out block numbers 0 .. num_blocks - 1 and take them back."""

    def __init__(self, num_blocks: int, block_size_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_size_tokens = block_size_tokens
        # A stack, lowest number on top: what was freed last is used first, while it may still be in the CPU's caches.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Return how many blocks nobody owns."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Return how many blocks are owned."""
        return self.num_blocks - len(self._free)

    @property
    def capacity_tokens(self) -> int:
        """Return how many tokens all blocks together can hold."""
        return self.num_blocks * self.block_size_tokens

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks `num_tokens` tokens of one sequence take."""
        return -(-num_tokens // self.block_size_tokens)

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks; the caller has made sure that so many are free."""
        assert 0 <= count <= len(self._free), f"{count} blocks asked for, {len(self._free)} free"
        return [self._free.pop() for _ in range(count)]

    def free(self, blocks: Iterable[int]) -> None:
        """Take blocks back."""
        self._free.extend(blocks)

    def check(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Make sure that free and owned blocks are all blocks, and that each of them is in one place only.

        block_tables: those of every sequence that owns blocks    Raises AssertionError, which only a bug can cause.
        """
        owned = [block for table in block_tables for block in table]
        everywhere = sorted(self._free + owned)
        assert everywhere == list(range(self.num_blocks)), (
            f"of {self.num_blocks} blocks, {len(self._free)} are free and {len(owned)} owned, "
            f"{len(everywhere) - len(set(everywhere))} of them twice"
        )
