"""TokenRows: numbers that depend on a token and on nothing else, kept for tokens that come again.

Shape letters: see gptj_batch.engine.
"""

from collections.abc import Callable
from collections.abc import Sequence as Ordered
from typing import Final

import torch
from torch import Tensor

MAX_TOKENS: Final = 4096
"""Of how many tokens rows are kept: the first that come twice, most of any text (64 MiB in float32, E = 1,024)."""

NEVER, ONCE = -1, -2  # how often a token was seen of which nothing is kept


class TokenRows:
    """Matrices with a row for each token, made when they are asked for, and kept from a token's second time on.

    For each token the rows have to be the same bits whichever tokens they are made with.
    """

    def __init__(
        self,
        make: Callable[[Tensor], Ordered[Tensor]],
        vocab_size: int,
        widths: Ordered[int],
        dtype: torch.dtype,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """make: different tokens (any,), int64 -> a matrix (any, width) for each of `widths`."""
        self._make = make
        self._places = torch.full((vocab_size,), NEVER)  # of a token's rows, where they are kept
        self._kept = [torch.empty(min(max_tokens, vocab_size), width, dtype=dtype) for width in widths]
        self._num_kept = 0

    def __call__(self, token_ids: Tensor) -> list[Tensor]:
        """Return the tokens' rows.

        token_ids: (T,), int64    returns: (T, width) for each width
        """
        places = self._places[token_ids]
        is_kept = places >= 0
        if is_kept.all():
            return [kept.index_select(0, places) for kept in self._kept]
        tokens, which, counts = token_ids[~is_kept].unique(return_inverse=True, return_counts=True)
        made = self._make(tokens)
        old, new = is_kept.nonzero().flatten(), (~is_kept).nonzero().flatten()
        results = []
        for kept, rows in zip(self._kept, made, strict=True):
            result = rows.new_empty(len(token_ids), rows.shape[1])
            result.index_copy_(0, old, kept.index_select(0, places[old]))
            results.append(result.index_copy_(0, new, rows.index_select(0, which)))
        self._keep(tokens, made, (counts > 1) | (self._places[tokens] == ONCE))
        return results

    def _keep(self, tokens: Tensor, made: Ordered[Tensor], came_again: Tensor) -> None:
        """Keep the rows of tokens that came again, as far as there is room.

        tokens: (any,), int64    made: (any, width) for each width    came_again: (any,), bool
        """
        self._places[tokens] = ONCE
        start = self._num_kept
        chosen = came_again.nonzero().flatten()[: len(self._kept[0]) - start]
        self._num_kept += len(chosen)
        for kept, rows in zip(self._kept, made, strict=True):
            torch.index_select(rows, 0, chosen, out=kept[start : self._num_kept])
        self._places[tokens[chosen]] = torch.arange(start, self._num_kept)
