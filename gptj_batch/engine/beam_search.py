"""BeamSearch: one request's beams, from step to step, as transformers' `generate` (5.23) keeps them. No tensors.

Each step offers the likeliest tokens of every running beam. Over all beams, the `num_candidates` with the highest
summed log-probability are looked at. Of these, the first `num_beams` finish where their last token ends them, and are
kept by score, which is the sum divided by (number of generated tokens ** length_penalty); those that do not end run on,
the first `num_beams` of them.

Sums and scores are rounded to float32 after every operation, as tensors round them: in double precision, near ties
could come out in another order. Equal sums, whose order torch.topk leaves open, are taken beam by beam in order.
"""

from collections.abc import Sequence as Ordered
from ctypes import c_float
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from typing import NamedTuple

from gptj_batch.engine.stopping import reason_to_end, stop_token_ids, wants_to_end
from gptj_batch.requests import Request
from gptj_batch.results import FinishReason, Generated


class Candidate(NamedTuple):
    """A token that may continue a beam.

    score: its log-probability after penalties, float32    logprob: by the model itself
    """

    token_id: int
    score: float
    logprob: float


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation of the prompt, not ended yet.

    total: the sum of its tokens' scores    parent: the place, one step ago, of the beam that it continues
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0
    parent: int = 0


@dataclass(frozen=True, slots=True)
class FinishedBeam:
    """A continuation that has ended; `score` is its total under the length penalty."""

    beam: Beam
    score: float
    reason: FinishReason


class BeamSearch:
    """Keep the running beams of one request, best first, and the best that have finished.

    It begins with one empty beam and is done when nothing runs, or nothing that runs is expected to do better.
    """

    def __init__(self, request: Request, eos_token_ids: tuple[int, ...]) -> None:
        self.request = request
        self.running = [Beam()]
        self.is_done = False
        self._sampling = request.sampling
        self._eos_token_ids = eos_token_ids
        self._finished: list[FinishedBeam] = []

    @property
    def num_candidates(self) -> int:
        """Return how many tokens each beam has to offer."""
        return num_candidates(self.request, self._eos_token_ids)

    def advance(self, offers: Ordered[Ordered[Candidate]]) -> None:
        """Choose the beams that run on and those that have finished.

        offers: the likeliest `num_candidates` tokens of every running beam, best first
        Raises RequestCodeError where the request's stop condition raises.
        """
        assert not self.is_done and len(offers) == len(self.running), f"{len(offers)} offers, {len(self.running)} beams"
        best = self._best(offers)
        ends = [self._end(beam.token_ids) for beam in best]
        num_beams = self._sampling.num_beams
        for beam, reason in islice(zip(best, ends, strict=True), num_beams):
            if reason is not None:
                self._finished.append(FinishedBeam(beam, self._score(beam.total, len(beam.token_ids)), reason))
        self._finished.sort(key=lambda finished: -finished.score)
        del self._finished[num_beams:]
        self.running = [beam for beam, reason in zip(best, ends, strict=True) if reason is None][:num_beams]
        self.is_done = not self.running or self._is_settled()

    def result(self) -> Generated | None:
        """Return the best that has finished, the next best as its alternatives; None where nothing could be generated.

        Before the search is done, it is the best so far.
        """
        wanted = [self._generated(finished) for finished in self._finished[: self._sampling.num_return_sequences]]
        return replace(wanted[0], alternatives=tuple(wanted[1:])) if wanted else None

    def _best(self, offers: Ordered[Ordered[Candidate]]) -> list[Beam]:
        """Return the beams as the best candidates continue them, best first; what is impossible is left out."""
        totals = [
            (-_float32(beam.total + candidate.score), parent, place)
            for parent, (beam, offer) in enumerate(zip(self.running, offers, strict=True))
            for place, candidate in enumerate(offer)
            if candidate.score > -inf
        ]
        totals.sort()
        best = []
        for total, parent, place in totals[: self.num_candidates]:
            beam, candidate = self.running[parent], offers[parent][place]
            token_ids, logprobs = (*beam.token_ids, candidate.token_id), (*beam.logprobs, candidate.logprob)
            best.append(Beam(token_ids, logprobs, -total, parent))
        return best

    def _end(self, token_ids: tuple[int, ...]) -> FinishReason | None:
        wants_end = wants_to_end(self.request, token_ids, self._eos_token_ids)
        return reason_to_end(self._sampling, len(token_ids), wants_end)

    def _is_settled(self) -> bool:
        """Say whether the search ends although beams run: as soon as num_beams have finished, or none will do better.

        That none will is a guess where a length penalty favours longer sequences: it supposes that the best running
        beam ends now ("never": at max_new_tokens) and that its total stays.
        """
        sampling = self._sampling
        if len(self._finished) < sampling.num_beams:
            return False
        if sampling.early_stopping is True:
            return True
        looks_ahead = sampling.early_stopping == "never" and sampling.length_penalty > 0.0
        num_tokens = sampling.max_new_tokens if looks_ahead else len(self.running[0].token_ids)
        return self._score(self.running[0].total, num_tokens) <= self._finished[-1].score

    def _score(self, total: float, num_tokens: int) -> float:
        return _float32(total / _float32(num_tokens**self._sampling.length_penalty))

    def _generated(self, finished: FinishedBeam) -> Generated:
        return Generated(
            key=self.request.key,
            token_ids=finished.beam.token_ids,
            finish_reason=finished.reason,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            logprobs=finished.beam.logprobs if self._sampling.logprobs else None,
            score=finished.score,
        )


def num_candidates(request: Request, eos_token_ids: tuple[int, ...]) -> int:
    """Return how many continuations a search looks at: if all others end, num_beams are left that do not."""
    num_ends = len(stop_token_ids(request.sampling, eos_token_ids))
    return max(2, 1 + num_ends) * request.sampling.num_beams


def _float32(value: float) -> float:
    return c_float(value).value
