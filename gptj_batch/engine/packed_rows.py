"""PackedRows: the rows of one pass and the prefixes that they share, laid out one behind the other without padding."""

from dataclasses import dataclass, field
from itertools import groupby

from gptj_batch.engine.label_tree import LabelTree
from gptj_batch.engine.row import Row
from gptj_batch.engine.shared_prefix import Share, SharedPrefix


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpan:
    """Where a row's tokens stand: its context from `first` on, its tree's branches from `branch`, nothing from `stop`.

    Each token sees the context up to itself, a branch token the whole context, its ancestors and itself.
    """

    first: int
    branch: int
    stop: int
    tree: LabelTree


@dataclass(frozen=True, slots=True, kw_only=True)
class FedPrefix:
    """A prefix that is fed in this pass: its tokens stand at `span`, and see each other causally."""

    prefix: SharedPrefix
    span: slice
    is_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSpan:
    """Rows, next to each other at `span`, all of whose tokens see the whole of what they share."""

    share: Share
    span: slice


@dataclass(slots=True)
class PackedRows:
    """A pass as plain lists; prefixes that are fed stand before the rows.

    read: the places of the tokens whose hidden states the head reads, row after row
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    rows: list[RowSpan] = field(default_factory=list)
    fed: list[FedPrefix] = field(default_factory=list)
    shared: list[SharedSpan] = field(default_factory=list)

    def feeds(self, prefix: SharedPrefix) -> bool:
        """Say whether a prefix is fed in this pass."""
        return any(fed.prefix is prefix for fed in self.fed)

    def feed(self, prefix: SharedPrefix, is_kept: bool) -> None:
        """Put a prefix at the end."""
        first = len(self.token_ids)
        self.token_ids += prefix.token_ids
        self.positions += range(len(prefix.token_ids))
        self.fed.append(FedPrefix(prefix=prefix, span=slice(first, len(self.token_ids)), is_kept=is_kept))

    def add(self, rows: list[Row]) -> None:
        """Put rows at the end."""
        for share, group in groupby(rows, key=lambda row: row.share):
            first = len(self.token_ids)
            for row in group:
                self._add_row(row)
            if share is not None:
                self.shared.append(SharedSpan(share=share, span=slice(first, len(self.token_ids))))

    def _add_row(self, row: Row) -> None:
        first = len(self.token_ids)
        self.token_ids += row.token_ids
        self.positions += row.positions
        stop = len(self.token_ids)
        self.read += range(stop - row.num_read, stop)
        self.rows.append(RowSpan(first=first, branch=stop - row.tree.num_branch_tokens, stop=stop, tree=row.tree))
