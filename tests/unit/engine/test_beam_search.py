import math
from collections.abc import Sequence
from typing import Any

import pytest

from gptj_batch.engine.beam_search import BeamSearch, Candidate, num_candidates
from gptj_batch.requests import Request, SamplingParams

EOS = 0


def make_search(stop: Any = None, eos: tuple[int, ...] = (EOS,), **sampling: Any) -> BeamSearch:
    params = SamplingParams(**{"num_beams": 2, "max_new_tokens": 9, **sampling})
    return BeamSearch(Request(key="a", prompt_token_ids=[1, 2], sampling=params, stop=stop), eos)


def offer(*scores: float, tokens: Sequence[int] = (5, 6, 7, 8)) -> list[Candidate]:
    """Return an offer of these tokens, whose log-probability by the model is one below their score."""
    return [Candidate(token, score, score - 1.0) for token, score in zip(tokens, scores, strict=False)]


def running(search: BeamSearch) -> list[tuple[int, tuple[int, ...], float]]:
    return [(beam.parent, beam.token_ids, beam.total) for beam in search.running]


def found(search: BeamSearch) -> list[tuple[tuple[int, ...], float | None]]:
    best = search.result()
    return [] if best is None else [(one.token_ids, one.score) for one in (best, *best.alternatives)]


def test_the_best_continuations_of_all_beams_run_on() -> None:
    search = make_search()
    search.advance([offer(-1.0, -2.0, -3.0, -4.0)])
    assert running(search) == [(0, (5,), -1.0), (0, (6,), -2.0)]
    search.advance([offer(-4.0, -5.0), offer(-0.5, -2.5)])
    assert running(search) == [(1, (6, 5), -2.5), (1, (6, 6), -4.5)]
    assert not search.is_done and search.result() is None


def test_equal_sums_are_taken_beam_by_beam() -> None:
    search = make_search(num_beams=3)
    search.advance([offer(-1.0, -1.0, -2.0)])
    search.advance([offer(-2.0), offer(-2.0), offer(-1.0)])
    assert [beam.parent for beam in search.running] == [0, 1, 2]


def test_sums_are_rounded_to_float32_as_tensors_round_them() -> None:
    search = make_search()
    search.advance([offer(-1.0, -1.5)])
    # 1e-9 is lost in float32: a tie, where double precision would put the second beam first
    search.advance([offer(-1.0), offer(-0.5 + 1e-9)])
    assert [beam.parent for beam in search.running] == [0, 1]


def test_a_beam_that_ends_is_kept_by_its_score_per_token() -> None:
    search = make_search(num_return_sequences=2)
    search.advance([offer(-1.0, -1.5, -2.0, tokens=(EOS, 6, 7))])
    assert running(search) == [(0, (6,), -1.5), (0, (7,), -2.0)]
    search.advance([offer(-0.1, -1.0, tokens=(EOS, 6)), offer(-3.0)])
    assert found(search) == [((6, EOS), pytest.approx(-0.8)), ((EOS,), -1.0)]


@pytest.mark.parametrize(("penalty", "score"), [(0.0, -3.0), (1.0, -1.5), (2.0, -0.75), (-1.0, -6.0)])
def test_the_length_penalty_is_an_exponent_of_the_number_of_generated_tokens(penalty: float, score: float) -> None:
    search = make_search(length_penalty=penalty, max_new_tokens=2)
    search.advance([offer(-1.0, -9.0)])
    search.advance([offer(-2.0), offer(-9.0)])
    assert found(search) == [((5, 5), score)]


def test_an_end_beyond_the_best_num_beams_candidates_is_not_kept() -> None:
    search = make_search()
    search.advance([offer(-1.0, -2.0, -3.0, tokens=(5, 6, EOS))])
    assert found(search) == []
    assert [beam.token_ids for beam in search.running] == [(5,), (6,)]


def finish_two(early_stopping: Any, last: float, length_penalty: float = 1.0) -> BeamSearch:
    """Finish one beam of 1 token and one of 3, which score -1.0 and -1.5 each; the best that runs then has `last`."""
    search = make_search(early_stopping=early_stopping, length_penalty=length_penalty, num_return_sequences=2)
    search.advance([offer(-1.0, -1.1, -8.0, tokens=(EOS, 6, 7))])
    search.advance([offer(-0.1), offer(-9.0)])
    total, end = search.running[0].total, -1.5 * 3**length_penalty
    best_first = sorted([Candidate(EOS, end - total, 0.0), Candidate(6, last - total, 0.0)], key=lambda c: -c.score)
    assert not search.is_done
    search.advance([best_first, offer(-99.0)])
    assert [score for _, score in found(search)] == pytest.approx([-1.0, -1.5])
    return search


def test_early_stopping_true_ends_as_soon_as_num_beams_have_finished() -> None:
    assert finish_two(True, last=-3.0).is_done


@pytest.mark.parametrize(("last", "is_done"), [(-4.4, False), (-4.6, True)])
def test_early_stopping_false_goes_on_while_the_best_beam_would_beat_the_worst_finished(
    last: float, is_done: bool
) -> None:
    assert finish_two(False, last).is_done is is_done


@pytest.mark.parametrize(("last", "is_done"), [(-13.4, False), (-13.6, True)])
def test_early_stopping_never_supposes_that_the_best_beam_may_grow_to_the_maximum(last: float, is_done: bool) -> None:
    assert finish_two("never", last).is_done is is_done  # 9 tokens at most: -13.5 / 9 = -1.5


@pytest.mark.parametrize(("length_penalty", "border"), [(0.0, -1.5), (-1.0, -0.5)])
def test_early_stopping_never_looks_at_the_present_length_where_longer_is_no_better(
    length_penalty: float, border: float
) -> None:
    assert finish_two("never", border - 0.1, length_penalty).is_done
    assert not finish_two("never", border + 0.1, length_penalty).is_done


def test_at_the_maximum_every_beam_ends_for_its_length() -> None:
    search = make_search(max_new_tokens=1, num_return_sequences=2)
    search.advance([offer(-1.0, -2.0, -3.0, tokens=(5, EOS, 7))])
    result = search.result()
    assert search.is_done and result is not None
    assert [(one.token_ids, one.finish_reason) for one in (result, *result.alternatives)] == [
        ((5,), "length"),
        ((EOS,), "stop"),
    ]
    assert all(not one.alternatives for one in result.alternatives)


def test_a_stop_condition_is_asked_for_every_continuation_and_ends_it() -> None:
    asked: list[tuple[int, ...]] = []

    def stop(token_ids: Sequence[int]) -> bool:
        asked.append(tuple(token_ids))
        return token_ids[-1] == 6

    search = make_search(stop)
    search.advance([offer(-1.0, -2.0, -3.0)])
    assert asked == [(5,), (6,), (7,)]
    assert [beam.token_ids for beam in search.running] == [(5,), (7,)]
    assert found(search) == [((6,), -2.0)]


def test_where_every_continuation_ends_nothing_is_left_to_run() -> None:
    search = make_search(lambda token_ids: True)
    search.advance([offer(-1.0, -2.0, -3.0)])
    assert search.is_done and search.running == []


def test_impossible_tokens_are_no_continuations() -> None:
    search = make_search()
    search.advance([offer(-1.0, -math.inf, -math.inf)])
    assert [beam.token_ids for beam in search.running] == [(5,)]
    search.advance([offer(-math.inf)])
    assert search.is_done and search.result() is None


@pytest.mark.parametrize(("num_ends", "expected"), [(0, 8), (1, 8), (2, 12), (3, 16)])
def test_so_many_candidates_that_num_beams_of_them_do_not_end(num_ends: int, expected: int) -> None:
    sampling = SamplingParams(num_beams=4, stop_token_ids=tuple(range(num_ends)))
    assert num_candidates(Request(key="a", prompt_token_ids=[1], sampling=sampling), ()) == expected


@pytest.mark.parametrize("wanted", [True, False])
def test_the_logprobs_are_the_models_own_where_they_are_asked_for(wanted: bool) -> None:
    search = make_search(logprobs=wanted, max_new_tokens=2)
    search.advance([offer(-1.0, -2.0)])
    search.advance([offer(-1.0), offer(-8.0)])
    result = search.result()
    assert result is not None and result.logprobs == ((-2.0, -2.0) if wanted else None)
    assert (result.key, result.num_prompt_tokens) == ("a", 2)
