"""Truncation: a prompt made to fit by cutting the record's text, at the end that the user chose, or refused.

The template's own text stays whole, before, between and behind what is cut. Of several texts of a record the longest is
cut first, in tokens, until it is as long as the next; then both; and so on. The rest is encoded anew, since a cut may
change the tokens beside it, and cut further where it came out too long.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from gptj_batch.errors import RecordError
from gptj_batch.prompts.template import Rendered
from gptj_batch.prompts.tokenizer import Tokenizer

TruncationSide = Literal["left", "right", "error"]


def fitted(
    prompt: Rendered, token_ids: Sequence[int], max_tokens: int, side: TruncationSide, tokenizer: Tokenizer
) -> tuple[Sequence[int], int]:
    """Return at most `max_tokens` token ids of a prompt, and how many fewer they are than it had.

    "left" cuts texts of the record at their left end and keeps their right, "right" cuts at the right; "error" cuts
    nothing and raises RecordError. So do the others where none of the record's text would be left.
    """
    assert max_tokens >= 1, "the configuration leaves room for a prompt"
    if len(token_ids) <= max_tokens:
        return token_ids, 0
    if side == "error":
        raise RecordError(
            f"the prompt has {len(token_ids)} tokens and {max_tokens} fit; set truncate to left or right, lower "
            "max_new_tokens, or shorten the text"
        )
    texts = _record_texts(prompt, tokenizer)
    room = sum(text.num_tokens for text in texts) - (len(token_ids) - max_tokens)
    while room > 0:
        cut = _cut(prompt.text, texts, shares([text.num_tokens for text in texts], room), side)
        if cut is None:
            break
        (kept,) = tokenizer.encode_batch([cut])
        if len(kept) <= max_tokens:
            return kept, len(token_ids) - len(kept)
        # One token less at least; but not nothing before the least was tried.
        room = max(room - (len(kept) - max_tokens), 1) if room > 1 else 0
    raise RecordError(
        f"the template's own text leaves no room for the record's: {max_tokens} tokens fit and it has "
        f"{_count(prompt.own_text, tokenizer)}; shorten the template, or lower max_new_tokens"
    )


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """Return how much of each length is kept where `room` is for all together: the longest are cut to one length.

    What does not come out even is the first ones', one each.
    """
    most = bisect_right(range(max(lengths) + 1), room, key=lambda cap: sum(min(one, cap) for one in lengths)) - 1
    kept = [min(one, most) for one in lengths]
    left = room - sum(kept)
    for place, one in enumerate(lengths):
        if left > 0 and one > most:
            kept[place] += 1
            left -= 1
    return kept


@dataclass(frozen=True)
class _RecordText:
    """One text of the record in a prompt: its characters, and those of every token that has a part in it."""

    start: int
    end: int
    tokens: Sequence[tuple[int, int]]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> tuple[int, int]:
        """Return the characters of the first tokens; one that a later token shares is not among them."""
        if count == self.num_tokens:
            return self.start, self.end
        end = min(self.tokens[count - 1][1], self.tokens[count][0]) if count else self.start
        return self.start, max(self.start, min(end, self.end))

    def last(self, count: int) -> tuple[int, int]:
        """Return the characters of the last tokens; one that an earlier token shares is not among them."""
        if count == self.num_tokens:
            return self.start, self.end
        start = max(self.tokens[-count][0], self.tokens[-count - 1][1]) if count else self.end
        return min(self.end, max(start, self.start)), self.end


def _record_texts(prompt: Rendered, tokenizer: Tokenizer) -> list[_RecordText]:
    _, offsets = tokenizer.encode_with_offsets(prompt.text)
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    return [
        _RecordText(start, end, offsets[bisect_right(ends, start) : bisect_left(starts, end)])
        for start, end in prompt.spans
    ]


def _cut(text: str, of_record: Sequence[_RecordText], kept: Sequence[int], side: TruncationSide) -> str | None:
    """Return the text with so many tokens of each of the record's; None where no character of these is left."""
    spans = [(one.last if side == "left" else one.first)(count) for one, count in zip(of_record, kept, strict=True)]
    if not any(end > start for start, end in spans):
        return None
    # Between two texts of the record stands the template's.
    edges = [0, *(edge for one in of_record for edge in (one.start, one.end)), len(text)]
    own = [text[start:end] for start, end in list(pairwise(edges))[::2]]
    return own[0] + "".join(text[start:end] + behind for (start, end), behind in zip(spans, own[1:], strict=True))


def _count(text: str, tokenizer: Tokenizer) -> int:
    (token_ids,) = tokenizer.encode_batch([text])
    return len(token_ids)
