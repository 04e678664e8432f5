"""RowQueue: the rows that wait for their pass, which of them share a beginning, and which come next."""

from collections import deque
from collections.abc import Iterator

from gptj_batch.engine.prefix_groups import MIN_SHARED_TOKENS, TOKEN_BYTES, Group, find_groups, make_key
from gptj_batch.engine.row import Row
from gptj_batch.engine.shared_prefix import PrefixStore, Share, SharedPrefix

# Rows that have run are remembered by their tokens, so that a beginning is found even where rows come one by one.
MAX_REMEMBERED = 32
MAX_REMEMBERED_OF_A_PLAN = 16


class RowQueue:
    """Plan all that has come in, serve that to the end, then plan what came meanwhile: nothing is overtaken for ever.

    A plan puts rows that share a beginning next to each other, those of a group and those of none shortest first.
    """

    def __init__(self, store: PrefixStore, n_layer: int) -> None:
        self._store = store
        self._n_layer = n_layer
        self._arrived: list[Row] = []
        self._planned: list[Row] = []  # in reverse: rows are taken from the end
        self._remembered: deque[bytes] = deque(maxlen=MAX_REMEMBERED)
        self._recurring: set[Share] = set()  # of the plan: shared with rows of earlier plans as well

    def __iter__(self) -> Iterator[Row]:
        yield from self._planned
        yield from self._arrived

    def __bool__(self) -> bool:
        return bool(self._arrived or self._planned)

    def add(self, row: Row) -> None:
        """Let a row wait for its turn."""
        self._arrived.append(row)

    def release(self, row: Row) -> None:
        """Let go of a row."""
        (self._planned if row in self._planned else self._arrived).remove(row)

    def take(self, max_tokens: int) -> list[Row]:
        """Take rows that can run together, up to so many tokens; a single row may be longer than that.

        A prefix counts in the first step that uses it, where it is fed.
        """
        if not self._planned:
            self._plan()
        rows: list[Row] = []
        budget, seen = max_tokens, set[SharedPrefix]()
        while self._planned:
            row = self._planned[-1]
            num_tokens = row.num_tokens + self._num_to_feed(row, seen)
            if rows and (num_tokens > budget or self._depth(row) != self._depth(rows[0])):
                break
            rows.append(self._planned.pop())
            budget -= num_tokens
            if row.share is not None:
                seen.add(row.share.prefix)
        return rows

    def put_back(self, rows: list[Row]) -> None:
        """Let rows that were taken, and could not be run, be the next ones again."""
        self._planned.extend(reversed(rows))

    def is_worth_keeping(self, share: Share) -> bool:
        """Say whether rows behind those just taken can be expected to share this too."""
        return share in self._recurring or (bool(self._planned) and self._planned[-1].share is share)

    def _num_to_feed(self, row: Row, seen: set[SharedPrefix]) -> int:
        if row.share is None or row.share.prefix in seen:
            return 0
        prefix = row.share.prefix
        return 0 if len(prefix.layers) >= self._depth(row)[0] else len(prefix.token_ids)

    def _depth(self, row: Row) -> tuple[int, bool]:
        """Return how far through the model a row goes: its layers, and whether the final norm follows."""
        num_layers = row.num_layers(self._n_layer)
        return (self._n_layer, True) if num_layers is None else (num_layers, False)

    def _plan(self) -> None:
        """Sort what has arrived: by depth, then groups, those on prefixes that are held first, then the others."""
        rows, self._arrived = self._arrived, []
        if not rows:
            return
        self._recurring.clear()
        order: dict[Share | None, int] = {share: place for place, share in enumerate(self._share(rows))}
        order[None] = len(order)
        rows.sort(key=lambda row: (self._depth(row), order[row.share], row.num_tokens))
        self._planned = rows[::-1]

    def _share(self, rows: list[Row]) -> list[Share]:
        """Find out which rows share what, and tell them; return the shares, those on held prefixes first."""
        # Tokens whose hidden states are read must be fed by the row itself.
        keys = [make_key(row.context[: row.first_read]) for row in rows]
        held = list(self._store)
        groups = find_groups([*keys, *(prefix.key for prefix in held), *self._remembered])
        on_held: list[Share] = []
        on_new: list[Share] = []
        for group in groups:
            members = [rows[member] for member in group.members if member < len(rows)]
            if not members:
                continue
            among = [held[member - len(rows)] for member in group.members if 0 <= member - len(rows) < len(held)]
            prefix = among[-1] if among else _new_prefix(members[0], group)
            share = Share(prefix=prefix, num_tokens=group.num_tokens)
            (on_held if among else on_new).append(share)
            if len(members) < len(group.members):
                self._recurring.add(share)
            for row in members:
                row.share = share
        self._remember(keys)
        return on_held + on_new

    def _remember(self, keys: list[bytes]) -> None:
        """Keep a sample of a plan's rows, spread evenly over what they begin with."""
        keys = sorted(key for key in keys if len(key) >= MIN_SHARED_TOKENS * TOKEN_BYTES)
        distance = -(-len(keys) // MAX_REMEMBERED_OF_A_PLAN)
        self._remembered.extend(keys[:: max(1, distance)])


def _new_prefix(row: Row, group: Group) -> SharedPrefix:
    token_ids = row.context[: group.num_tokens]
    return SharedPrefix(make_key(token_ids), token_ids)
