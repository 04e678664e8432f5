from dataclasses import replace
from typing import Any

import pytest
import torch

from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.model import GPTJForCausalLM
from gptj_batch.requests import Request, SamplingParams
from gptj_batch.results import Failed, Generated

PROMPT = [5, 6, 7, 8, 9, 10]


def make_engine(model: GPTJForCausalLM, **config: Any) -> Engine:
    return Engine(model, EngineConfig(**{"num_blocks": 64, "block_size_tokens": 4, **config}))


def make_request(key: str = "beams", stop: Any = None, **sampling: Any) -> Request:
    params = {"max_new_tokens": 10, "ignore_eos": True, "num_beams": 4, **sampling}
    return Request(key=key, prompt_token_ids=PROMPT, sampling=SamplingParams(**params), stop=stop)


def greedy(key: str = "greedy") -> Request:
    return make_request(key, num_beams=1)


def num_sequences(engine: Engine) -> int:
    engine.scheduler.check()
    return sum(1 for _ in engine.scheduler)


def generated(result: object) -> Generated:
    assert isinstance(result, Generated), result
    return result


def test_the_prompt_is_fed_once_and_then_every_beam(model: GPTJForCausalLM) -> None:
    engine = make_engine(model)
    engine.add(make_request(max_new_tokens=3))
    fed = []
    while engine.has_unfinished:
        before = engine.scheduler.num_fed_tokens
        engine.step()
        engine.scheduler.check()
        fed.append(engine.scheduler.num_fed_tokens - before)
    assert fed == [len(PROMPT), 4, 4]


def test_a_search_gives_one_result_with_its_score_and_alternatives(model: GPTJForCausalLM) -> None:
    (result,) = make_engine(model).run([make_request(num_return_sequences=3)])
    best = generated(result)
    found = [best, *best.alternatives]
    scores = [one.score for one in found if one.score is not None]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert len({one.token_ids for one in found}) == 3
    assert {one.key for one in found} == {"beams"}


def test_a_greedy_request_beside_a_search_has_no_score(model: GPTJForCausalLM) -> None:
    alone = generated(make_engine(model).run([greedy()])[0])
    beside = generated(make_engine(model).run([make_request(), greedy()])[1])
    assert beside == alone
    assert (beside.score, beside.alternatives) == (None, ())


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_cancelling_a_search_frees_all_its_beams_at_once(model: GPTJForCausalLM, num_steps: int) -> None:
    engine = make_engine(model)
    got: list[object] = []
    engine.add(make_request(), got.append)
    for _ in range(num_steps):
        engine.step()
    assert engine.cancel("beams")
    assert num_sequences(engine) == 0
    assert engine.scheduler.pool.num_used == 0
    assert got == [Failed(key="beams", error="cancelled before it was finished")]
    assert engine.step() == [] and not engine.has_unfinished


def test_a_stop_condition_may_cancel_its_own_search(model: GPTJForCausalLM) -> None:
    engine = make_engine(model)

    def stop(token_ids: Any) -> bool:
        if len(token_ids) == 3:
            engine.cancel("beams")
        return False

    engine.add(make_request(stop=stop))
    engine.add(greedy())
    results = []
    while engine.has_unfinished:
        results += engine.step()
        engine.scheduler.check()
    assert [result.key for result in results] == ["greedy"]


def test_a_stop_condition_that_raises_fails_its_own_search_only(model: GPTJForCausalLM) -> None:
    def stop(token_ids: Any) -> bool:
        raise KeyError("secret text")

    engine = make_engine(model)
    failed, *others = engine.run([make_request(stop=stop), make_request("other"), greedy()])
    assert failed == Failed(key="beams", error="the request's stop condition raised KeyError; correct it")
    assert all(isinstance(other, Generated) for other in others)
    assert num_sequences(engine) == 0 and engine.scheduler.pool.num_used == 0


def test_logits_that_are_not_finite_fail_the_search(model: GPTJForCausalLM) -> None:
    bias = model.lm_head.bias
    assert bias is not None
    before = bias.detach().clone()
    try:
        with torch.no_grad():
            bias[3] = torch.nan
        (result,) = make_engine(model).run([make_request()])
    finally:
        with torch.no_grad():
            bias.copy_(before)
    assert isinstance(result, Failed) and "not finite" in result.error


@pytest.mark.parametrize(
    ("config", "sampling", "complaint"),
    [
        ({"max_step_tokens": 3}, {}, "num_beams must not exceed max_step_tokens (3), got 4"),
        ({"num_blocks": 12}, {}, "(12 blocks), got 4 beams of 6 + 10 tokens, which take up to 13"),
        ({}, {"num_beams": 31}, "than the vocabulary has (61)"),
        ({}, {"num_beams": 15, "stop_token_ids": (1, 2, 3)}, "num_beams 15 looks at 60"),
    ],
)
def test_a_search_that_can_never_run_is_refused_and_says_why(
    model: GPTJForCausalLM, config: dict[str, Any], sampling: dict[str, Any], complaint: str
) -> None:
    (result,) = make_engine(model, **config).run([make_request(**sampling)])
    assert isinstance(result, Failed) and complaint in result.error, result


def test_a_constraint_and_beams_do_not_go_together(model: GPTJForCausalLM) -> None:
    class Anything:
        def start(self) -> Any:
            raise AssertionError("not asked")

    request = replace(make_request(), constraint=Anything())
    (result,) = make_engine(model).run([request])
    assert isinstance(result, Failed) and "num_beams must be 1 with a constraint, got 4" in result.error


def test_a_cache_of_just_the_blocks_that_a_search_can_take_is_enough(model: GPTJForCausalLM) -> None:
    engine = make_engine(model, num_blocks=13, max_step_tokens=4)
    expected = generated(make_engine(model).run([make_request()])[0])
    found = generated(engine.run([make_request()])[0])
    assert found.token_ids == expected.token_ids
    assert engine.scheduler.num_preemptions == 0
