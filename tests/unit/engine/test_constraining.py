import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from gptj_batch import Failed, Generated, Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.engine.constraining import bias_of, constrain, permitted_tokens
from gptj_batch.engine.sampling import choose
from gptj_batch.engine.sequence import Sequence as EngineSequence
from gptj_batch.model import GPTJForCausalLM
from gptj_batch.requests import Allowed, Constraint
from gptj_batch.results import AnyResult

OFF = -math.inf
EOS = (1,)
CPU = torch.device("cpu")


def bits(*token_ids: int, num_bytes: int = 8) -> bytes:
    return sum(1 << token_id for token_id in token_ids).to_bytes(num_bytes, "little")


class Fixed:
    """The same tokens after every token, until so many were accepted; nothing follows then."""

    def __init__(self, allowed: Allowed, num_tokens: int = 4, may_end: Callable[[int], bool] = lambda num: False):
        self.tokens, self.num_tokens, self.ends = allowed, num_tokens, may_end

    def start(self) -> "FixedState":
        return FixedState(self)


class FixedState:
    def __init__(self, of: Fixed) -> None:
        self.of = of
        self.seen: list[int] = []

    def allowed(self) -> Allowed:
        return self.of.tokens if len(self.seen) < self.of.num_tokens else ()

    def accept(self, token_id: int) -> None:
        self.seen.append(token_id)

    @property
    def may_end(self) -> bool:
        return len(self.seen) == self.of.num_tokens or self.of.ends(len(self.seen))

    @property
    def is_complete(self) -> bool:
        return len(self.seen) == self.of.num_tokens


class Broken(FixedState):
    """Raises in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__(Fixed((5, 6)))
        self.where = where

    def start(self) -> "Broken":
        self._raise("start")
        return Broken(self.where)

    def _raise(self, where: str) -> None:
        if where == self.where:
            raise ValueError("what the record says")

    def allowed(self) -> Allowed:
        self._raise("allowed")
        return ("no number",) if self.where == "type" else super().allowed()  # type: ignore[return-value]

    def accept(self, token_id: int) -> None:
        self._raise("accept")
        super().accept(token_id)

    @property
    def may_end(self) -> bool:
        self._raise("may_end")
        return super().may_end

    @property
    def is_complete(self) -> bool:
        self._raise("is_complete")
        return super().is_complete


def make_sequence(constraint: Any = None, generated: Sequence[int] = (), **sampling: Any) -> EngineSequence:
    request = Request(key="a", prompt_token_ids=[0], sampling=SamplingParams(**sampling), constraint=constraint)
    sequence = EngineSequence(0, request)
    for token in generated:
        sequence.append(token)
    return sequence


# The mask


@pytest.mark.parametrize("vocab_size", [1, 7, 8, 9, 61, 64, 130])
def test_bits_and_ids_are_laid_out_as_counting_says(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    wanted = torch.rand(6, vocab_size, generator=generator) < 0.3
    permitted: list[Allowed] = []
    for row in range(6):
        ids = tuple(wanted[row].nonzero()[:, 0].tolist())
        permitted.append(ids if row % 2 else bits(*ids, num_bytes=-(-vocab_size // 8)))
    assert torch.equal(bias_of(permitted[::2], vocab_size, CPU), wanted[::2].float().log())
    assert torch.equal(bias_of(permitted, vocab_size, CPU), wanted.float().log())


@pytest.mark.parametrize("form", [tuple, lambda ids: bits(*ids)])
def test_tokens_that_end_a_sequence_are_permitted_where_it_may_end_only(form: Callable[[Any], Allowed]) -> None:
    def permitted(may_end: bool, **sampling: Any) -> set[int]:
        sequence = make_sequence(Fixed(form([2, 3, 9]), may_end=lambda num: may_end), **sampling)
        bias = bias_of([permitted_tokens(sequence, EOS, 12)], 12, CPU)
        return set((bias[0] == 0).nonzero()[:, 0].tolist())

    assert permitted(False) == {2, 3, 9}
    assert permitted(True) == {1, 2, 3, 9}
    assert permitted(False, stop_token_ids=(3, 7, 99)) == {2, 9}
    assert permitted(True, stop_token_ids=(3, 7, 99)) == {1, 2, 3, 7, 9}
    assert permitted(True, ignore_eos=True) == {2, 3, 9}
    assert permitted(True, min_new_tokens=1) == {2, 3, 9}


def test_tokens_outside_the_models_vocabulary_are_never_permitted() -> None:
    short = make_sequence(Fixed(bits(3, num_bytes=1)))
    assert permitted_tokens(short, EOS, 20) == bits(3, num_bytes=3)
    long = make_sequence(Fixed(bits(3, 11, 12, 200, num_bytes=30)))
    assert permitted_tokens(long, EOS, 12) == bits(3, 11, num_bytes=2)
    assert permitted_tokens(make_sequence(Fixed((-1, 3, 12))), EOS, 12) == (3,)


def test_only_rows_with_a_constraint_are_changed() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    sequences = [make_sequence(), make_sequence(Fixed((0, 2))), make_sequence(Fixed(bits(1)))]
    assert constrain(scores, sequences, ()) == {}
    assert scores.tolist() == [[1.0, 2.0, 3.0, 4.0], [1.0, OFF, 3.0, OFF], [OFF, 2.0, OFF, OFF]]


# The choice


def test_greedy_and_drawn_tokens_are_the_best_of_those_that_are_allowed() -> None:
    logits = torch.tensor([[1.0, 9.0, 4.0, 3.0]] * 3).bfloat16()
    fixed = Fixed((0, 2, 3))
    sequences = [
        make_sequence(fixed),
        make_sequence(fixed, temperature=1.0, top_k=1),
        make_sequence(fixed, temperature=1.0, top_p=0.5, min_p=0.1, repetition_penalty=1.2),
    ]
    assert [choice.token_id for choice in choose(logits, sequences, EOS)] == [2, 2, 2]


def test_tokens_are_drawn_as_often_as_they_are_likely_among_those_that_are_allowed() -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0))
    allowed = (2, 3, 7, 11)
    sequences = [make_sequence(Fixed(allowed), temperature=1.0, seed=seed) for seed in range(10_000)]
    choices = choose(logits.expand(10_000, -1), sequences, ())
    counts = torch.bincount(torch.tensor([choice.token_id for choice in choices]), minlength=12).double()
    expected = logits[list(allowed)].softmax(-1).double() * 10_000
    assert counts.sum() == counts[list(allowed)].sum()
    # Chi-squared with 3 degrees of freedom: 16.3 is passed once in a thousand.
    assert float(((counts[list(allowed)] - expected) ** 2 / expected).sum()) < 16.3


def test_log_probabilities_stay_those_of_the_model() -> None:
    logits = torch.tensor([[1.0, 5.0, 4.0]])
    (choice,) = choose(logits, [make_sequence(Fixed((0,)), logprobs=True)], EOS)
    assert choice.token_id == 0
    assert choice.logprob == pytest.approx(float(logits[0].log_softmax(-1)[0]))


def test_neighbours_of_a_constrained_row_are_unchanged_to_the_bit() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    neighbours = [
        make_sequence(logprobs=True),
        make_sequence(temperature=0.8, top_p=0.9, seed=3, logprobs=True),
        make_sequence(repetition_penalty=1.3, logprobs=True),
    ]
    for other in (Fixed((5,)), Fixed(()), Broken("allowed"), Fixed(bits(*range(64)))):
        choices = choose(logits, [*neighbours, make_sequence(other, temperature=1.0)], EOS)
        assert choices[:3] == choose(logits[:3], neighbours, EOS)


def test_where_nothing_is_left_the_row_has_a_problem_that_says_why() -> None:
    logits = torch.zeros(4, 61)
    sequences = [
        make_sequence(Fixed(())),
        make_sequence(Fixed(bits()), generated=[5, 6], temperature=1.0),
        make_sequence(Fixed((), num_tokens=0), min_new_tokens=3),
        make_sequence(Fixed((7,), may_end=lambda num: False), stop_token_ids=(7,)),
    ]
    problems = [choice.problem or "" for choice in choose(logits, sequences, EOS)]
    assert "allows no token after 0 generated ones" in problems[0]
    assert "allows no token after 2 generated ones" in problems[1]
    assert "nothing but an end after 0 tokens, and min_new_tokens is 3; lower it" in problems[2]
    assert "allows no token after 0 generated ones" in problems[3]


# The engine


@pytest.fixture
def engine(model: GPTJForCausalLM) -> Iterator[Engine]:
    engine = Engine(model, EngineConfig(max_step_tokens=9, max_running=4, num_blocks=9, block_size_tokens=4))
    yield engine
    engine.scheduler.check()
    assert engine.scheduler.pool.num_used == 0


def ask(constraint: Constraint | None = None, prompt: Sequence[int] = (5, 6), **sampling: Any) -> Request:
    params = SamplingParams(**{"max_new_tokens": 8, **sampling})
    return Request(key="a", prompt_token_ids=prompt, sampling=params, constraint=constraint)


def reason(result: AnyResult) -> str:
    assert isinstance(result, Generated), result
    return result.finish_reason


def test_a_complete_sequence_ends_without_an_end_of_text(engine: Engine) -> None:
    (result,) = engine.run([ask(Fixed((20, 21, 22), num_tokens=3))])
    assert isinstance(result, Generated)
    assert (len(result.token_ids), result.finish_reason) == (3, "stop")
    assert set(result.token_ids) <= {20, 21, 22}


def test_a_sequence_ends_by_its_end_of_text_where_that_is_allowed(engine: Engine) -> None:
    only_end = Fixed((), num_tokens=9, may_end=lambda num: True)
    (result,) = engine.run([ask(only_end)])
    assert isinstance(result, Generated)
    assert (result.token_ids, result.finish_reason) == ((1,), "stop")


def test_the_length_cuts_a_sequence_in_the_middle_of_its_constraint(engine: Engine) -> None:
    (result,) = engine.run([ask(Fixed((20, 21), num_tokens=9), max_new_tokens=3)])
    assert isinstance(result, Generated)
    assert (len(result.token_ids), result.finish_reason) == (3, "length")


def test_a_stop_condition_is_heeded_where_the_constraint_permits_an_end(engine: Engine) -> None:
    constraint = Fixed((20, 21), num_tokens=9, may_end=lambda num: num == 4)
    (result,) = engine.run([replace(ask(constraint), stop=lambda generated: True)])
    assert isinstance(result, Generated)
    assert (len(result.token_ids), result.finish_reason) == (4, "stop")


@pytest.mark.parametrize("where", ["start", "allowed", "type", "may_end", "accept", "is_complete"])
def test_a_constraint_that_raises_fails_its_request_only_and_quotes_nothing(engine: Engine, where: str) -> None:
    neighbours = [ask(), ask(Fixed((20, 21, 22), num_tokens=6)), ask(temperature=1.0, prompt=(7, 8, 9))]
    alone = engine.run(neighbours)
    results = engine.run([neighbours[0], ask(Broken(where)), *neighbours[1:]])
    assert isinstance(failed := results.pop(1), Failed)
    assert "the request's constraint raised" in failed.error and "record" not in failed.error
    assert results == alone


def test_a_constraint_complete_before_min_new_tokens_fails_its_request(engine: Engine) -> None:
    (result,) = engine.run([ask(Fixed((20,), num_tokens=2), min_new_tokens=5)])
    assert isinstance(result, Failed)
    assert "nothing but an end after 2 tokens, and min_new_tokens is 5; lower it" in result.error


def test_one_constraint_serves_many_sequences_also_through_preemption(model: GPTJForCausalLM) -> None:
    def odd_then_even(num: int) -> Fixed:
        return Fixed(bits(*range(20 + num % 2, 60, 2)), num_tokens=12)

    shared = [odd_then_even(0), odd_then_even(1)]
    requests = [ask(shared[index % 2], prompt=(5, index), max_new_tokens=20) for index in range(10)]
    roomy = Engine(model, EngineConfig(num_blocks=60))
    alone = [roomy.run([request])[0] for request in requests]
    tight = Engine(model, EngineConfig(max_step_tokens=9, max_running=4, num_blocks=9, block_size_tokens=4))
    assert tight.run(requests) == alone
    assert tight.scheduler.num_preemptions > 0
    for index, result in enumerate(alone):
        assert isinstance(result, Generated) and len(result.token_ids) == 12
        assert all(token % 2 == index % 2 for token in result.token_ids)
