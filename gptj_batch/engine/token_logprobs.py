"""token_logprobs: the log-probabilities of given tokens, from hidden states and the language modelling head.

Shape letters: see gptj_batch.engine. Here S is the tokens that are read, row after row.
"""

import torch
from torch import Tensor

from gptj_batch.engine.body import Body
from gptj_batch.engine.row import Row
from gptj_batch.engine.row_products import row_products
from gptj_batch.requests import LabelRequest

# Logits over the vocabulary are made so many rows at a time: 128 x 50,400 in bfloat16 are 13 MB. Their normalisers, in
# float32, a few rows at a time: what a cache holds is reduced 3.5 times as fast as 128 rows at once.
MAX_LOGIT_ROWS = 128
MAX_NORMALISER_ROWS = 8

Target = tuple[int, int]  # a place among the tokens read, and the token to be predicted there


def row_logprobs(body: Body, hidden: Tensor, rows: list[Row]) -> list[list[float]]:
    """Return the log-probability of each list of targets of every row, summed over the list.

    hidden: (S, E)
    """
    absolute: list[Target] = []
    relative: list[Target] = []
    first = 0
    for row in rows:
        for place, token in _targets(row):
            (relative if _is_relative(row, place) else absolute).append((first + place, token))
        first += row.num_read
    of_absolute = iter(_token_logprobs(body, hidden, absolute))
    of_relative = iter(_token_logits(body, hidden, relative))
    return [
        [
            sum(next(of_relative if _is_relative(row, place) else of_absolute) for place, _ in targets)
            for targets in row.targets
        ]
        for row in rows
    ]


def _targets(row: Row) -> list[Target]:
    return [target for targets in row.targets for target in targets]


def _is_relative(row: Row, place: int) -> bool:
    """Say whether the normaliser at `place` may be left out, since every label has exactly one token there."""
    return place == 0 and isinstance(row.request, LabelRequest) and row.request.relative


def _token_logits(body: Body, hidden: Tensor, targets: list[Target]) -> list[float]:
    """Return the logit of every target, in float32 whatever the model computes in, without those of other tokens.

    hidden: (S, E)
    """
    if not targets:
        return []
    places, tokens = torch.tensor(targets, device=hidden.device).unbind(-1)
    needed, place_of = places.unique(return_inverse=True)
    wanted, column_of = tokens.unique(return_inverse=True)
    logits = row_products(hidden[needed], *body.head_rows(wanted))
    on_host: list[float] = logits[place_of, column_of].tolist()
    return on_host


def _token_logprobs(body: Body, hidden: Tensor, targets: list[Target]) -> list[float]:
    """Return the log-probability of every target, the normaliser over the whole vocabulary in float32.

    The head is applied where something is to be predicted, and nowhere else.

    hidden: (S, E)
    """
    if not targets:
        return []
    places, tokens = torch.tensor(targets, device=hidden.device).unbind(-1)
    needed, place_of = places.unique(return_inverse=True)
    logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for first in range(0, len(needed), MAX_LOGIT_ROWS):
        logits = body.project(hidden[needed[first : first + MAX_LOGIT_ROWS]])
        here = ((place_of >= first) & (place_of < first + MAX_LOGIT_ROWS)).nonzero()[:, 0]
        local = place_of[here] - first
        logprobs[here] = logits[local, tokens[here]].float() - _normalisers(logits)[local]
    on_host: list[float] = logprobs.tolist()
    return on_host


def _normalisers(logits: Tensor) -> Tensor:
    """Return the log of the sum of exponentials of every row.

    logits: (any, V)    returns: (any,), float32
    """
    num_rows = MAX_NORMALISER_ROWS if logits.device.type == "cpu" else MAX_LOGIT_ROWS
    return torch.cat([part.float().logsumexp(-1) for part in logits.split(num_rows)])
