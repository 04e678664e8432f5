"""StopStrings: texts at which a generation ends."""

from collections.abc import Sequence
from functools import lru_cache

from gptj_batch.prompts.tokenizer import Tokenizer

MAX_REMEMBERED = 256


class StopStrings:
    """A stop condition on text, decided on bytes: a stop may begin inside one token and end inside another."""

    def __init__(self, stops: Sequence[str], tokenizer: Tokenizer) -> None:
        self._stops = [stop.encode() for stop in stops]
        self._longest = max(len(stop) for stop in self._stops)
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}
        tokenizer.token_bytes(0)  # raises here, not row by row, where tokens have no bytes

    def __call__(self, generated_token_ids: Sequence[int]) -> bool:
        """Tell whether the last token completes a stop."""
        return bool(self.ending(generated_token_ids))

    def ending(self, token_ids: Sequence[int]) -> bytes:
        """Return the bytes from the beginning of the stop that the last token completes; none where it completes none.

        Of several, the one that begins first counts.
        """
        num_last = len(self._text_bytes(token_ids[-1])) if token_ids else 0
        tail = b""
        for token_id in reversed(token_ids):
            if len(tail) >= num_last + self._longest:
                break
            tail = self._text_bytes(token_id) + tail
        places = [tail.find(stop, max(0, len(tail) - num_last - len(stop) + 1)) for stop in self._stops]
        found = [place for place in places if place >= 0]
        return tail[min(found) :] if found else b""

    def _text_bytes(self, token_id: int) -> bytes:
        """Return what a token adds to the text: a special one adds nothing."""
        if token_id not in self._bytes:
            is_text = bool(self._tokenizer.decode([token_id], skip_special_tokens=True))
            self._bytes[token_id] = self._tokenizer.token_bytes(token_id) if is_text else b""
        return self._bytes[token_id]


class StopStringsByTexts:
    """Return the stop condition of given texts, the same one for the same texts while it is remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._made = lru_cache(maxsize=MAX_REMEMBERED)(lambda stops: StopStrings(stops, tokenizer))

    def __call__(self, stops: tuple[str, ...]) -> StopStrings | None:
        """Return the condition; None for no texts."""
        return self._made(stops) if stops else None
