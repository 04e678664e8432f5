"""PrefixTree: which blocks hold known tokens, so that a sequence that begins with them need not compute them again."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gptj_batch.engine.token_index import TokenIndex


class Node:
    """A block whose tokens are known, and with those of its parents all that stands before them.

    tokens: a whole block's, or its first few    children: the blocks that continue it
    """

    __slots__ = ("block", "children", "parent", "tokens")

    def __init__(self, block: int, parent: "Node | None", tokens: tuple[int, ...]) -> None:
        self.block = block
        self.parent = parent
        self.tokens = tokens
        self.children: TokenIndex[Node] = TokenIndex()


class Match(NamedTuple):
    """What is known of a sequence: whole blocks to share, then the first tokens of `source`, which must be copied."""

    node: Node
    blocks: list[int]
    source: int | None
    num_copied_tokens: int
    num_tokens: int


class PrefixTree:
    """Find blocks by their tokens and by all tokens before them."""

    def __init__(self, block_size_tokens: int) -> None:
        self.block_size_tokens = block_size_tokens
        self._root = Node(-1, None, ())
        self._nodes: dict[int, Node] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._nodes

    def match(self, token_ids: list[int], max_tokens: int) -> Match:
        """Return what is known of the first `max_tokens` of a sequence."""
        node, blocks, start, size = self._root, list[int](), 0, self.block_size_tokens
        while start + size <= max_tokens:
            child = node.children.get(tuple(token_ids[start : start + size]))
            if child is None:
                break
            node = child
            blocks.append(child.block)
            start += size
        closest, num_copied = node.children.closest(tuple(token_ids[start : min(start + size, max_tokens)]))
        source = closest.block if closest is not None else None
        return Match(node, blocks, source, num_copied, start + num_copied)

    def insert(self, table: Sequence[int], index: int, tokens: tuple[int, ...]) -> int:
        """Note that block `index` of a table, whose blocks before it are known, holds `tokens`.

        Return the block that is known to hold them from now on: another one if it held them before. A block that is
        known may have become fuller.
        """
        block, parent = table[index], self._nodes[table[index - 1]] if index else self._root
        node = self._nodes.get(block)
        if node is not None and node.tokens == tokens:
            return block
        known, num_common = parent.children.closest(tokens)
        if known is not None and known is not node and num_common == len(tokens):
            if node is not None and len(tokens) == self.block_size_tokens:
                self.remove(block)
            return known.block
        if node is not None:
            self.remove(block)
        self._nodes[block] = node = Node(block, parent, tokens)
        parent.children.add(tokens, node)
        return block

    def remove(self, block: int) -> None:
        """Forget what a block holds; nothing may continue it."""
        node = self._nodes.pop(block)
        assert len(node.children) == 0, f"block {block} is to be forgotten before those that continue it"
        assert node.parent is not None
        node.parent.children.remove(node.tokens)

    def tokens_of(self, block: int) -> tuple[int, ...]:
        """Return what a known block holds."""
        return self._nodes[block].tokens

    def parent_of(self, block: int) -> int | None:
        """Return the block that a known block continues; None for a sequence's first."""
        parent = self._nodes[block].parent
        return None if parent is None or parent is self._root else parent.block

    def check(self) -> None:
        """Make sure that every node hangs where its tokens say. Raises AssertionError, which only a bug can cause."""
        assert {node.block: node for node in self._all_nodes()} == self._nodes, "a block is lost from the tree"
        for node in [self._root, *self._nodes.values()]:
            for tokens, child in node.children.items():
                assert child.parent is node, "a child does not know its parent"
                assert child.tokens == tokens, "a child is under other tokens than its own"
                is_whole = len(tokens) == self.block_size_tokens
                assert is_whole or len(child.children) == 0, "a block that is not full is continued"

    def _all_nodes(self) -> Iterator[Node]:
        nodes = [self._root]
        while nodes:
            children = [child for _, child in nodes.pop().children.items()]
            yield from children
            nodes += children
