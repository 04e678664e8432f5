from typing import Any

import torch
from torch import Tensor

from gptj_batch.engine.beam_offers import offer
from gptj_batch.engine.beam_search import Candidate
from gptj_batch.engine.sequence import Sequence
from gptj_batch.requests import Request, SamplingParams

VOCAB_SIZE = 50
EOS = (1,)


def make_beam(prompt: tuple[int, ...] = (5, 6), **sampling: Any) -> Sequence:
    params = SamplingParams(**{"num_beams": 3, **sampling})
    return Sequence(0, Request(key="a", prompt_token_ids=prompt, sampling=params))


def make_logits(num_rows: int = 1) -> Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


def offer_one(logits: Tensor, beam: Sequence) -> list[Candidate]:
    (found,) = offer(logits, [beam], EOS)
    assert found is not None
    return found


def test_a_beam_offers_its_likeliest_tokens_best_first() -> None:
    logits = make_logits()
    expected = logits.log_softmax(-1)[0].sort(descending=True)
    found = offer_one(logits, make_beam())
    assert [one.token_id for one in found] == expected.indices[:6].tolist()
    assert [one.score for one in found] == expected.values[:6].tolist()
    assert [one.logprob for one in found] == expected.values[:6].tolist()


def test_the_repetition_penalty_changes_log_probabilities_and_leaves_the_models_own_alone() -> None:
    logits = make_logits()
    seen = int(logits[0].argmax())
    logprob = float(logits.log_softmax(-1)[0, seen])
    found = {one.token_id: one for one in offer_one(logits, make_beam((seen,), repetition_penalty=1.25))}
    assert abs(found[seen].score - 1.25 * logprob) < 1e-6
    assert found[seen].logprob == logprob


def test_before_the_minimum_no_end_token_is_possible() -> None:
    logits = make_logits()
    logits[0, EOS] = 20.0
    assert offer_one(logits, make_beam())[0].token_id == EOS[0]
    assert EOS[0] not in [one.token_id for one in offer_one(logits, make_beam(min_new_tokens=1))]


def test_an_offer_does_not_depend_on_its_company() -> None:
    logits = make_logits(4).bfloat16().round(decimals=0)  # ties everywhere
    beams = [make_beam(num_beams=count) for count in (2, 5, 2, 3)]
    alone = [offer(logits[row : row + 1], [beam], EOS)[0] for row, beam in enumerate(beams)]
    assert offer(logits, beams, EOS) == alone
    assert [len(one or ()) for one in alone] == [4, 10, 4, 6]


def test_logits_that_are_not_finite_give_no_offer_and_leave_the_others_alone() -> None:
    logits = make_logits(3)
    expected = offer_one(logits[1:2], make_beam())
    logits[0, 3], logits[2, 3] = torch.nan, torch.inf
    assert offer(logits, [make_beam()] * 3, EOS) == [None, expected, None]
