"""Vocabulary: the bytes of every token that text is made of, and which of them a text goes on with."""

from collections.abc import Iterable
from functools import cached_property

from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import Allowed

MAX_LISTED = 256  # from here on a bit a token is the smaller form, and the faster one to lay out


class Vocabulary:
    """The tokens of a tokenizer by their bytes; made once per job, shared by all its requests.

    Added tokens, such as the end of text, are no part of any text.

    bytes_of: each token's bytes, by its id; empty for a token that is no text
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take in a byte-level tokenizer. Raises CheckpointError for one whose tokens have no bytes."""
        added = tokenizer.added_token_ids
        self.bytes_of = [
            b"" if token_id in added else tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)
        ]

    @cached_property
    def _ids_by_prefix(self) -> dict[bytes, tuple[int, ...]]:
        """The tokens of every beginning of a token, so that a search knows when no longer one can come.

        Made when first asked for: what only reads tokens back does not need it.
        """
        found: dict[bytes, tuple[int, ...]] = {}
        for token_id, whole in enumerate(self.bytes_of):
            for num_bytes in range(1, len(whole)):
                found.setdefault(whole[:num_bytes], ())
            if whole:
                found[whole] = (*found.get(whole, ()), token_id)
        return found

    def beginning(self, text: bytes, start: int, before: bytes = b"") -> list[tuple[int, int]]:
        """Return every token that `before` and the bytes of `text` from `start` on begin with.

        returns: (where in `text` it ends, its id), the shortest first; those within `before` alone are left out
        """
        found: list[tuple[int, int]] = []
        get = self._ids_by_prefix.get
        for stop in range(start + 1, len(text) + 1):
            token_ids = get(before + text[start:stop])
            if token_ids is None:
                break
            for token_id in token_ids:
                found.append((stop, token_id))
        return found

    def ids(self, whole: bytes) -> tuple[int, ...]:
        """Return the tokens that stand for exactly these bytes."""
        return self._ids_by_prefix.get(whole, ())

    def with_ids(self, allowed: Allowed, more: Iterable[int]) -> Allowed:
        """Return what is allowed and more of it."""
        if not isinstance(allowed, bytes):
            return self.compact((*allowed, *more))
        bits = bytearray(allowed)
        for token_id in more:
            bits[token_id // 8] |= 1 << token_id % 8
        return bytes(bits)

    def compact(self, token_ids: Iterable[int]) -> Allowed:
        """Return token ids in the form that costs less."""
        listed = tuple(sorted(set(token_ids)))
        if len(listed) <= MAX_LISTED:
            return listed
        bits = bytearray(-(-len(self.bytes_of) // 8))
        for token_id in listed:
            bits[token_id // 8] |= 1 << token_id % 8
        return bytes(bits)
