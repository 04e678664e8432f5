"""Sampling: from a step's logits to each sequence's next token.

Shape letters: see gptj_batch.engine. R rows that are not plain greedy.
"""

from collections.abc import Sequence as Ordered
from typing import NamedTuple

import torch
from torch import Tensor

from gptj_batch.engine.constraining import constrain
from gptj_batch.engine.cpu_kernels.best import best
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.stopping import must_go_on, stop_token_ids
from gptj_batch.requests import SamplingParams

MASK_64 = 2**64 - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
# top_p needs the likeliest tokens in order. Sorting 64 rows of 50,400 took 120 ms on 2 cores, as long as two decoding
# steps; finding the 256 likeliest takes a tenth of it, and is mostly enough.
NUM_LIKELIEST = 256


class Choice(NamedTuple):
    """A sequence's next token.

    logprob: its log-probability by the model itself, where that was asked for
    problem: why there is none to choose, where the request's constraint is to blame; the token is then meaningless
    """

    token_id: int
    is_finite: bool
    logprob: float | None
    problem: str | None = None


def choose(logits: Tensor, sequences: Ordered[Sequence], eos_token_ids: tuple[int, ...]) -> list[Choice]:
    """Choose the next token of every sequence, with one copy from device to host.

    A row's choice depends on the row, its sampling parameters and the number of its tokens only, not on its company.
    `is_finite` is False where the logits hold NaN or an infinity, and the token is then meaningless.

    logits: (S, V)
    """
    token_ids, is_finite = best(logits) or _likeliest(logits)
    # On a GPU the likeliest tokens are not known here without waiting for them.
    likeliest: Ordered[int | None] = token_ids.tolist() if logits.is_cpu else [None] * len(sequences)
    rows = [
        row
        for row, (sequence, token) in enumerate(zip(sequences, likeliest, strict=True))
        if not _takes_likeliest(sequence, token, eos_token_ids)
    ]
    problems: dict[int, str] = {}
    if rows:
        scores, of_rows = logits[rows].float(), [sequences[row] for row in rows]
        # Before anything waits for the device: a GPU is still at work on the logits while constraints are asked.
        problems = {rows[row]: problem for row, problem in constrain(scores, of_rows, eos_token_ids).items()}
        chosen = _choose_among(scores, of_rows, eos_token_ids)
        token_ids = token_ids.index_copy(0, torch.tensor(rows, device=logits.device), chosen)
    columns = [token_ids.double(), is_finite.double()]
    wants_logprob = [sequence.request.sampling.logprobs for sequence in sequences]
    if any(wants_logprob):
        columns.append(_logprobs(logits, token_ids).double())
    on_host = torch.stack(columns).tolist()
    return [
        Choice(
            token_id=int(on_host[0][row]),
            is_finite=bool(on_host[1][row]),
            logprob=on_host[2][row] if wants_logprob[row] else None,
            problem=problems.get(row),
        )
        for row in range(len(sequences))
    ]


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Do in plain torch what the kernel `best` does.

    logits: (S, V)    returns: (S,), int64, and (S,), bool
    """
    # max rather than argmax: the same lowest index on ties, and 6 times faster on a CPU in bf16 (engine-facts 3.2).
    highest, token_ids = logits.max(-1)
    return token_ids, highest.isfinite() & logits.amin(-1).isfinite()


def uniform(seed: int, index: int) -> float:
    """Return the number in [0, 1) that `seed` gives for the token `index`, by two rounds of splitmix64.

    A counter instead of a generator's state: a sequence that was preempted, moved to another batch or run again draws
    the same numbers. 52 bits, so that even the largest, times a sum of probabilities, rounds to less than that sum.
    """
    state = _mix(seed & MASK_64) ^ (seed >> 64 & MASK_64)
    return (_mix(state + index * GOLDEN_GAMMA) >> 12) * 2.0**-52


def _mix(state: int) -> int:
    """Scramble 64 bits: one step of splitmix64 (Steele, Lea, Flood 2014)."""
    z = (state + GOLDEN_GAMMA) & MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    return z ^ (z >> 31)


def _takes_likeliest(sequence: Sequence, likeliest: int | None, eos_token_ids: tuple[int, ...]) -> bool:
    """Tell whether a sequence's next token is certain to be the likeliest, which is None where it is not known yet."""
    sampling = sequence.request.sampling
    if sampling.temperature != 0.0 or sampling.repetition_penalty != 1.0 or sequence.request.constraint is not None:
        return False
    impossible = stop_token_ids(sampling, eos_token_ids) if must_go_on(sequence) else ()
    return not impossible or (likeliest is not None and likeliest not in impossible)


def _choose_among(scores: Tensor, sequences: Ordered[Sequence], eos_token_ids: tuple[int, ...]) -> Tensor:
    """Apply penalties and filters, in transformers' order, and choose; scores are changed in place.

    scores: (R, V), float32    returns: (R,)
    """
    penalise_repetition(scores, sequences)
    suppress_stop_tokens(scores, sequences, eos_token_ids)
    token_ids = scores.max(-1).indices
    drawn = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.temperature > 0.0]
    if drawn:
        params = [sequences[row].request.sampling for row in drawn]
        draws = [uniform(p.seed, len(sequences[row].generated_token_ids)) for row, p in zip(drawn, params, strict=True)]
        filtered = filter_scores(scores[drawn], params)
        token_ids[drawn] = draw(filtered, torch.tensor(draws, dtype=torch.float64, device=scores.device))
    return token_ids


def penalise_repetition(scores: Tensor, sequences: Ordered[Sequence]) -> None:
    """Make tokens that stand in the prompt or were generated less likely (Keskar et al. 2019, CTRL, section 4.1).

    scores: (R, V), changed in place
    """
    for row, sequence in enumerate(sequences):
        penalty = sequence.request.sampling.repetition_penalty
        if penalty != 1.0:
            seen = torch.tensor(sequence.token_ids, device=scores.device)
            seen_scores = scores[row, seen]
            scores[row, seen] = torch.where(seen_scores < 0, seen_scores * penalty, seen_scores / penalty)


def suppress_stop_tokens(scores: Tensor, sequences: Ordered[Sequence], eos_token_ids: tuple[int, ...]) -> None:
    """Make the tokens that would end a sequence impossible, where it has to go on.

    scores: (R, V), changed in place
    """
    for row, sequence in enumerate(sequences):
        if must_go_on(sequence):
            ending = stop_token_ids(sequence.request.sampling, eos_token_ids)
            scores[row, [token for token in ending if 0 <= token < scores.shape[-1]]] = -torch.inf


def filter_scores(scores: Tensor, params: Ordered[SamplingParams]) -> Tensor:
    """Apply temperature, then make what top_k, top_p and min_p exclude impossible, as transformers' warpers do.

    scores: (R, V), float32    returns: (R, V)
    """
    scores = scores / _column([p.temperature for p in params], scores)
    scores = keep_top_k(scores, [p.top_k for p in params])
    scores = keep_top_p(scores, [p.top_p for p in params])
    return keep_min_p(scores, [p.min_p for p in params])


def keep_top_k(scores: Tensor, top_k: Ordered[int]) -> Tensor:
    """Keep each row's k highest scores, and those equal to the lowest of them; 0 keeps all.

    scores: (R, V)    returns: (R, V)
    """
    limits = [k if k < scores.shape[-1] else 0 for k in top_k]
    if not any(limits):
        return scores
    best = scores.topk(max(limits)).values
    last = torch.tensor(limits, device=scores.device)[:, None]
    threshold = best.gather(-1, (last - 1).clamp(min=0)).masked_fill(last == 0, -torch.inf)
    return scores.masked_fill(scores < threshold, -torch.inf)


def keep_top_p(scores: Tensor, top_p: Ordered[float]) -> Tensor:
    """Keep each row's most likely tokens up to and with the one that brings their sum to p; 1.0 keeps all.

    Of equally likely tokens (frequent in bfloat16) those with the lower index come first.

    scores: (R, V)    returns: (R, V)
    """
    rows = [row for row, p in enumerate(top_p) if p < 1.0]
    if not rows:
        return scores
    probabilities = scores[rows].softmax(-1)
    limits = _column([top_p[row] for row in rows], scores)
    last, num_equal, is_complete = _nucleus_end(probabilities, limits, min(NUM_LIKELIEST, scores.shape[-1]))
    wider = (~is_complete).nonzero()[:, 0]
    if len(wider):
        last[wider], num_equal[wider], _ = _nucleus_end(probabilities[wider], limits[wider], scores.shape[-1])
    is_last = probabilities == last
    excluded = torch.zeros_like(scores, dtype=torch.bool)
    excluded[rows] = (probabilities < last) | (is_last & (is_last.cumsum(-1, dtype=torch.int32) > num_equal))
    return scores.masked_fill(excluded, -torch.inf)


def _nucleus_end(probabilities: Tensor, limits: Tensor, num_likeliest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find where each row's nucleus ends, looking at its likeliest tokens only.

    probabilities: (R, V)    limits: (R, 1)
    returns: the smallest probability in it (R, 1), how many tokens that have just that are in it (R, 1), and whether
        the tokens looked at were enough to say so (R,)
    """
    likeliest = probabilities.topk(num_likeliest).values
    sums = likeliest.cumsum(-1)
    is_inside = torch.cat((torch.zeros_like(sums[:, :1]), sums[:, :-1]), -1) < limits
    last = likeliest.gather(-1, is_inside.sum(-1, keepdim=True) - 1)
    num_equal = (is_inside & (likeliest == last)).sum(-1, keepdim=True)
    return last, num_equal, sums[:, -1] >= limits[:, 0]


def keep_min_p(scores: Tensor, min_p: Ordered[float]) -> Tensor:
    """Keep tokens at least min_p times as likely as the likeliest; 0.0 keeps all.

    scores: (R, V)    returns: (R, V)
    """
    if not any(min_p):
        return scores
    probabilities = scores.softmax(-1)
    threshold = probabilities.amax(-1, keepdim=True) * _column(min_p, scores)
    return scores.masked_fill(probabilities < threshold, -torch.inf)


def draw(scores: Tensor, draws: Tensor) -> Tensor:
    """Return, in each row, the token at which the summed probability passes the row's draw.

    scores: (R, V)    draws: (R,), float64, in [0, 1)    returns: (R,)
    """
    summed = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    target = draws[:, None] * summed[:, -1:]
    # Rows of NaN find no place; the clamp keeps their (meaningless) token inside the vocabulary.
    return torch.searchsorted(summed, target, right=True).clamp(max=scores.shape[-1] - 1)[:, 0]


def _logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return the log-probability of each row's token by the unmodified logits.

    logits: (S, V)    token_ids: (S,)    returns: (S,), float32
    """
    return logits.float().log_softmax(-1).gather(-1, token_ids[:, None])[:, 0]


def _column(values: Ordered[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
