"""SharedPrefix: a beginning that rows share, with its keys and values; and PrefixStore, which bounds their memory.

Shape letters: see gptj_batch.engine. Here L is the tokens of a prefix.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from gptj_batch.engine.prefix_groups import TOKEN_BYTES


class SharedPrefix:
    """A beginning that is fed once for all rows that share it.

    key: its tokens, see `prefix_groups`    layers: a (keys, values) per layer, each (H, L, D), contiguous; those of as
    many layers as have been computed and kept
    """

    def __init__(self, key: bytes, token_ids: list[int]) -> None:
        self.key = key
        self.token_ids = token_ids
        self.layers: list[tuple[Tensor, Tensor]] = []

    @property
    def num_bytes(self) -> int:
        """Return the memory that the kept keys and values take."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Share:
    """What a group of rows takes from a prefix: its first `num_tokens` tokens, which may be all of them.

    Compared by identity: one object a group.
    """

    prefix: SharedPrefix
    num_tokens: int


class PrefixStore:
    """Hold the prefixes used last, as long as their keys and values fit `max_bytes`.

    One that has to go only loses its memory: rows that still refer to it feed it again.
    """

    def __init__(self, max_bytes: int, bytes_per_token: int) -> None:
        self.max_bytes = max_bytes
        self._bytes_per_token = bytes_per_token
        self._prefixes: dict[bytes, SharedPrefix] = {}  # the one used last stands last

    def __iter__(self) -> Iterator[SharedPrefix]:
        yield from self._prefixes.values()

    @property
    def num_bytes(self) -> int:
        """Return the memory that is held."""
        return sum(prefix.num_bytes for prefix in self)

    def can_hold(self, prefix: SharedPrefix) -> bool:
        """Say whether the prefix would fit if it were alone."""
        return len(prefix.key) // TOKEN_BYTES * self._bytes_per_token <= self.max_bytes

    def use(self, prefix: SharedPrefix) -> None:
        """Hold a prefix that has just been used, and let go of those used longest ago that no longer fit."""
        before = self._prefixes.pop(prefix.key, None)
        if before is not None and before is not prefix:
            before.layers.clear()
        self._prefixes[prefix.key] = prefix
        while self.num_bytes > self.max_bytes:
            self._prefixes.pop(next(iter(self._prefixes))).layers.clear()
