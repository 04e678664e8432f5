import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gptj_batch import Request, SamplingParams
from gptj_batch.engine import sampling as sampling_module
from gptj_batch.engine.sampling import choose, draw, filter_scores, keep_min_p, keep_top_k, keep_top_p, uniform
from gptj_batch.engine.sequence import Sequence

OFF = -math.inf


def make_sequence(prompt: list[int] | None = None, generated: list[int] | None = None, **sampling: Any) -> Sequence:
    request = Request(key="a", prompt_token_ids=prompt or [0], sampling=SamplingParams(**sampling))
    sequence = Sequence(0, request)
    for token in generated or []:
        sequence.append(token)
    return sequence


def choose_tokens(logits: list[list[float]], *sequences: Sequence, eos: tuple[int, ...] = ()) -> list[int]:
    return [choice.token_id for choice in choose(torch.tensor(logits), sequences, eos)]


def test_greedy_takes_the_highest_and_of_equals_the_first() -> None:
    logits = [[0.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0]]
    assert choose_tokens(logits, make_sequence(), make_sequence()) == [1, 0]
    assert choose(torch.tensor(logits).bfloat16(), [make_sequence()] * 2, ())[0].token_id == 1


def test_a_uniform_number_depends_on_seed_and_place_only() -> None:
    assert uniform(3, 5) == uniform(3, 5)
    numbers = {uniform(seed, index) for seed in (-1, 0, 1, 2**63, 2**64 + 1) for index in range(200)}
    assert len(numbers) == 1000
    assert all(0.0 <= number < 1.0 for number in numbers)


def test_uniform_numbers_are_spread_evenly_over_places_and_over_seeds() -> None:
    for numbers in ([uniform(7, index) for index in range(20_000)], [uniform(seed, 0) for seed in range(20_000)]):
        counts = torch.histc(torch.tensor(numbers), 20, 0.0, 1.0)
        # Chi-squared with 19 degrees of freedom: 43.8 is passed once in a thousand.
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8


def test_neighbouring_places_and_seeds_are_not_correlated() -> None:
    numbers = torch.tensor([[uniform(seed, index) for index in range(100)] for seed in range(100)]) - 0.5
    for product in (numbers[:, 1:] * numbers[:, :-1], numbers[1:] * numbers[:-1]):
        assert abs(float(product.mean()) * 12) < 0.04


def test_the_draw_walks_through_the_summed_probabilities() -> None:
    scores = torch.tensor([[0.25, 0.25, 0.0, 0.5]]).log()
    draws = {0.0: 0, 0.249: 0, 0.251: 1, 0.499: 1, 0.501: 3, 1 - 2.0**-52: 3}
    found = [int(draw(scores, torch.tensor([number], dtype=torch.float64))) for number in draws]
    assert found == list(draws.values())


def test_top_k_keeps_the_k_highest_and_their_equals() -> None:
    scores = torch.tensor([[1.0, 4.0, 3.0, 3.0], [1.0, 4.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    assert keep_top_k(scores, [2, 1, 0]).tolist() == [
        [OFF, 4.0, 3.0, 3.0],
        [OFF, 4.0, OFF, OFF],
        [1.0, 2.0, 3.0, 4.0],
    ]
    assert torch.equal(keep_top_k(scores, [4, 9, 0]), scores)


def test_top_p_keeps_the_token_that_crosses_p() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 4)
    kept = keep_top_p(probabilities.log(), [0.39, 0.41, 0.95, 1.0]) > OFF
    assert kept.tolist() == [
        [False, False, False, True],
        [False, False, True, True],
        [True, True, True, True],
        [True, True, True, True],
    ]


def test_top_p_counts_the_first_of_equals_as_the_likelier() -> None:
    kept = keep_top_p(torch.zeros(1, 8), [0.3]) > OFF
    assert kept.tolist() == [[True, True, True, False, False, False, False, False]]


@pytest.mark.parametrize("p", [0.2, 0.9, 0.999])
def test_top_p_is_the_same_whether_the_nucleus_is_small_or_large(p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 2000, generator=generator) * torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])[:, None]
    ordered, order = scores.softmax(-1).sort(-1, descending=True)
    inside = ordered.double().cumsum(-1) - ordered.double() < p
    expected = torch.zeros_like(inside).scatter(-1, order, inside)
    found = keep_top_p(scores, [p] * 6) > OFF
    assert int((expected != found).sum()) <= 1  # a rounding at the edge


def test_min_p_is_relative_to_the_likeliest() -> None:
    scores = torch.tensor([[0.1, 0.15, 0.25, 0.5]] * 2).log()
    assert (keep_min_p(scores, [0.4, 0.0]) > OFF).tolist() == [[False, False, True, True], [True] * 4]


def test_the_filters_of_different_rows_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 300, generator=generator)
    params = [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=2.0, top_p=0.6),
        SamplingParams(temperature=0.5, top_k=50, top_p=0.9, min_p=0.1),
    ]
    together = filter_scores(scores, params)
    for row in range(4):
        assert torch.equal(together[row], filter_scores(scores[row : row + 1], params[row : row + 1])[0])


def test_repetition_penalty_counts_prompt_and_generated_tokens_and_each_once() -> None:
    sequence = make_sequence([2, 2, 2], [3], repetition_penalty=2.0)
    assert choose_tokens([[-9.0, 2.5, 4.0, 4.5]], sequence) == [1]
    assert choose_tokens([[-3.0, -9.0, -1.0, -2.0]], sequence) == [2]  # -3, -9, -2, -4


def test_what_would_end_the_sequence_too_early_is_impossible() -> None:
    logits = [[1.0, 5.0, 4.0, 3.0]]
    early = {"min_new_tokens": 2, "stop_token_ids": (2, 99)}
    assert choose_tokens(logits, make_sequence(**early), eos=(1,)) == [3]
    assert choose_tokens(logits, make_sequence(**early, ignore_eos=True), eos=(1,)) == [1]
    assert choose_tokens(logits, make_sequence(generated=[0, 0], **early), eos=(1,)) == [1]


def test_scores_are_copied_only_where_what_would_end_the_sequence_too_early_is_the_likeliest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[int] = []
    among = sampling_module._choose_among

    def choose_among(scores: Tensor, *others: Any) -> Tensor:
        copied.append(len(scores))
        return among(scores, *others)

    monkeypatch.setattr(sampling_module, "_choose_among", choose_among)
    logits = torch.tensor([[0.0, 3.0, 2.0], [0.0, 2.0, 3.0]])
    must_go_on = [make_sequence(min_new_tokens=2), make_sequence(min_new_tokens=2)]
    assert [choice.token_id for choice in choose(logits, must_go_on, (2,))] == [1, 1]
    assert copied == [1]


def test_an_end_of_text_outside_the_vocabulary_is_ignored() -> None:
    assert choose_tokens([[1.0, 5.0]], make_sequence(min_new_tokens=2), eos=(50256,)) == [1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_found_and_its_neighbours_are_untouched(value: float) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, value, 3.0], [3.0, 2.0, 1.0]])
    for sampling in ({}, {"temperature": 1.0, "top_p": 0.01, "logprobs": True}):
        sequences = [make_sequence(**sampling) for _ in range(3)]
        choices = choose(logits, sequences, ())
        assert [choice.is_finite for choice in choices] == [True, False, True]
        assert [choices[0].token_id, choices[2].token_id] == [2, 0]


def test_logprobs_are_those_of_the_model_before_any_change() -> None:
    logits = torch.tensor([[1.0, 5.0, 4.0]] * 3)
    plain = make_sequence(logprobs=True)
    changed = make_sequence([1], temperature=0.3, top_k=1, repetition_penalty=2.0, logprobs=True)
    choices = choose(logits, [plain, changed, make_sequence()], ())
    assert choices[0].logprob == pytest.approx(float(logits[0].log_softmax(-1)[1]))
    assert choices[1].token_id == 2
    assert choices[1].logprob == pytest.approx(float(logits[0].log_softmax(-1)[2]))
    assert choices[2].logprob is None


def test_a_row_is_drawn_the_same_alone_and_in_company() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 500, generator=generator)
    sequences = [
        make_sequence(temperature=1.0, seed=1),
        make_sequence(),
        make_sequence(temperature=0.8, top_p=0.9, seed=2),
        make_sequence(temperature=1.5, top_k=20, seed=3),
        make_sequence([4], repetition_penalty=1.3),
        make_sequence(temperature=1.0, min_p=0.05, seed=4),
    ]
    together = choose(logits, sequences, ())
    alone = [choose(logits[row : row + 1], [sequences[row]], ())[0] for row in range(6)]
    assert together == alone
