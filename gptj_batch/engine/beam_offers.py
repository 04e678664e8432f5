"""Offers: from a step's logits to the tokens that may continue each beam.

Shape letters: see gptj_batch.engine. R rows that belong to beams, K tokens that each offers.
"""

from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from gptj_batch.engine.beam_search import Candidate, num_candidates
from gptj_batch.engine.sampling import Choice, choose, penalise_repetition, suppress_stop_tokens
from gptj_batch.engine.sequence import Sequence

Offer = list[Candidate] | None
"""A beam's likeliest next tokens, best first; None where its logits are not finite."""


def choose_or_offer(
    logits: Tensor, sequences: Ordered[Sequence], eos_token_ids: tuple[int, ...]
) -> list[Choice | Offer]:
    """Choose the next token of every sequence; a beam's cannot be chosen alone, so it offers its likeliest.

    logits: (S, V)
    """
    is_beam = [sequence.request.sampling.num_beams > 1 for sequence in sequences]
    if not any(is_beam):
        return [*choose(logits, sequences, eos_token_ids)]
    outcomes: list[Choice | Offer] = [None] * len(sequences)
    for decide, wanted in ((offer, True), (choose, False)):
        rows = [row for row, found in enumerate(is_beam) if found is wanted]
        if rows:
            decided = decide(logits[rows], [sequences[row] for row in rows], eos_token_ids)
            for row, outcome in zip(rows, decided, strict=True):
                outcomes[row] = outcome
    return outcomes


def offer(logits: Tensor, sequences: Ordered[Sequence], eos_token_ids: tuple[int, ...]) -> list[Offer]:
    """Return what each beam offers.

    As transformers does it, penalties change log-probabilities here, not logits. A row's offer does not depend on its
    company: rows are only looked at together with those that offer as many.

    logits: (R, V)
    """
    offers: list[Offer] = [None] * len(sequences)
    wanted = [num_candidates(sequence.request, eos_token_ids) for sequence in sequences]
    for count in set(wanted):
        rows = [row for row, other in enumerate(wanted) if other == count]
        found = _likeliest(logits[rows].float(), [sequences[row] for row in rows], eos_token_ids, count)
        for row, candidates in zip(rows, found, strict=True):
            offers[row] = candidates
    return offers


def _likeliest(logits: Tensor, sequences: Ordered[Sequence], eos_token_ids: tuple[int, ...], count: int) -> list[Offer]:
    """Find the `count` likeliest tokens of every row, with one copy from device to host.

    logits: (R, V), float32
    """
    is_finite = logits.isfinite().all(-1)
    logprobs = logits.log_softmax(-1)
    scores = logprobs.clone()
    penalise_repetition(scores, sequences)
    suppress_stop_tokens(scores, sequences, eos_token_ids)
    best, token_ids = scores.topk(min(count, scores.shape[-1]))
    # (R, 1 + 3 * K) in float64, which holds both float32 and token ids exactly
    columns = (is_finite[:, None], token_ids, best, logprobs.gather(-1, token_ids))
    on_host = torch.cat([column.double() for column in columns], dim=-1).tolist()
    return [_candidates(row) if row[0] else None for row in on_host]


def _candidates(row: list[float]) -> list[Candidate]:
    """Read one row of `_likeliest`."""
    count = (len(row) - 1) // 3
    token_ids, scores, logprobs = row[1 : count + 1], row[count + 1 : 2 * count + 1], row[2 * count + 1 :]
    return [Candidate(int(token), *both) for token, *both in zip(token_ids, scores, logprobs, strict=True)]
