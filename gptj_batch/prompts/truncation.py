"""Truncation: a prompt's token ids made to fit, on the side that the user chose, or refused."""

from collections.abc import Sequence
from typing import Literal

from gptj_batch.errors import RecordError

TruncationSide = Literal["left", "right", "error"]


def truncate(token_ids: Sequence[int], max_tokens: int, side: TruncationSide) -> tuple[Sequence[int], int]:
    """Return at most `max_tokens` of the token ids, and how many were dropped.

    "left" drops from the left and keeps the end, "right" drops from the end, "error" raises RecordError instead.
    """
    assert max_tokens >= 1, "the configuration leaves room for a prompt"
    num_dropped = len(token_ids) - max_tokens
    if num_dropped <= 0:
        return token_ids, 0
    if side == "left":
        return token_ids[num_dropped:], num_dropped
    if side == "right":
        return token_ids[:max_tokens], num_dropped
    raise RecordError(
        f"the prompt has {len(token_ids)} tokens and {max_tokens} fit; set truncate to left or right, lower "
        "max_new_tokens, or shorten the text"
    )
