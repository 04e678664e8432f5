from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from gptj_batch import Failed, Generated, Labelled, LabelRequest, Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.errors import ConfigError
from gptj_batch.model import GPTJConfig, GPTJForCausalLM
from gptj_batch.results import AnyResult

TIGHT = EngineConfig(max_step_tokens=9, max_running=4, num_blocks=9, block_size_tokens=4)


@pytest.fixture
def engine(model: GPTJForCausalLM) -> Iterator[Engine]:
    engine = Engine(model, TIGHT)
    yield engine
    engine.scheduler.check()
    assert not engine.has_unfinished
    assert engine.scheduler.pool.num_used == 0


def make_request(prompt: list[int], key: str = "a", stop: Any = None, **sampling: Any) -> Request:
    params = SamplingParams(**{"max_new_tokens": 12, "ignore_eos": True, **sampling})
    return Request(key=key, prompt_token_ids=prompt, sampling=params, stop=stop)


def never(generated: Sequence[int]) -> bool:
    """Stop never; but since the engine cannot know, it promises the request less memory than it may take."""
    return False


def tokens(result: AnyResult) -> tuple[int, ...]:
    assert isinstance(result, Generated), result
    return result.token_ids


@torch.no_grad()
def greedy(model: GPTJForCausalLM, prompt: list[int], count: int = 12) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16], [17, 18], [19] * 11]


def test_results_stand_in_the_order_of_the_requests_whatever_their_keys(engine: Engine, model: GPTJForCausalLM) -> None:
    results = engine.run([make_request(prompt, stop=never) for prompt in PROMPTS])
    assert [tokens(result) for result in results] == [greedy(model, prompt) for prompt in PROMPTS]
    assert [result.key for result in results] == ["a"] * len(PROMPTS)
    assert engine.scheduler.num_preemptions > 0


def test_an_engine_without_a_config_chooses_for_itself(model: GPTJForCausalLM) -> None:
    assert tokens(Engine(model).run([make_request([5, 6])])[0]) == greedy(model, [5, 6])


def test_no_request_is_a_short_run(engine: Engine) -> None:
    assert engine.run([]) == []
    assert engine.step() == []


def test_a_request_that_can_never_run_fails_in_its_place(engine: Engine, model: GPTJForCausalLM) -> None:
    bad = [make_request([]), make_request([61]), make_request([5] * 90), make_request([5] * 30)]
    results = engine.run(
        [bad[0], make_request([5, 6]), *bad[1:], LabelRequest(key="l", prompt_token_ids=[], label_token_ids=())]
    )
    assert tokens(results.pop(1)) == greedy(model, [5, 6])
    assert all(isinstance(result, Failed) for result in results)


def test_step_by_step_results_come_as_they_finish(engine: Engine) -> None:
    engine.add(make_request([5, 6], key="long", max_new_tokens=5))
    engine.add(make_request([5, 6], key="short", max_new_tokens=2))
    engine.add(make_request([], key="bad"))
    finished = []
    while engine.has_unfinished:
        finished.append([result.key for result in engine.step()])
    assert finished == [["bad"], ["short"], [], [], ["long"]]


def test_running_a_list_keeps_what_others_added_for_the_next_step(engine: Engine) -> None:
    engine.add(make_request([5, 6], key="mine", max_new_tokens=2))
    results = engine.run([make_request([7], key="theirs")])
    assert [result.key for result in results] == ["theirs"]
    assert [result.key for result in engine.step()] == ["mine"]


def test_cancelling_frees_at_once_and_returns_nothing(engine: Engine) -> None:
    for prompt in PROMPTS:
        engine.add(make_request(prompt, key=str(len(prompt))))
    engine.add(LabelRequest(key="8", prompt_token_ids=[1], label_token_ids=((1,),)))
    engine.step()
    engine.add(LabelRequest(key="8", prompt_token_ids=[1], label_token_ids=((1,),)))
    used = engine.scheduler.pool.num_used
    assert engine.cancel("3")
    assert engine.scheduler.pool.num_used < used
    assert engine.cancel("8")
    assert not engine.cancel("8")
    engine.scheduler.check()
    finished = []
    while engine.has_unfinished:
        finished += [result.key for result in engine.step()]
    assert sorted(finished) == ["1", "11", "2"]


def test_a_run_whose_request_is_cancelled_on_the_way_says_so(engine: Engine) -> None:
    def stop(generated: Sequence[int]) -> bool:
        return engine.cancel("me") or engine.cancel("other")

    results = engine.run([make_request([5], key="me", stop=stop), make_request([6], key="other"), make_request([7])])
    assert [type(result) for result in results] == [Failed, Generated, Generated]
    assert "cancelled" in results[0].error  # type: ignore[union-attr]


def test_end_of_text_ends_a_request_unless_it_is_ignored(engine: Engine, model: GPTJForCausalLM) -> None:
    expected = greedy(model, [5, 6])
    stopped, ignored = engine.run(
        [
            make_request([5, 6], stop_token_ids=(expected[3],)),
            make_request([5, 6], ignore_eos=True),
        ]
    )
    first = expected.index(expected[3])
    assert (tokens(stopped), stopped.finish_reason) == (expected[: first + 1], "stop")  # type: ignore[union-attr]
    assert (tokens(ignored), ignored.finish_reason) == (expected, "length")  # type: ignore[union-attr]


def test_the_models_own_end_of_text_is_known(model: GPTJForCausalLM) -> None:
    expected = greedy(model, [5, 6])
    end, model.config.eos_token_id = model.config.eos_token_id, expected[2]
    result = Engine(model, TIGHT).run([make_request([5, 6], ignore_eos=False)])[0]
    model.config.eos_token_id = end
    assert tokens(result) == expected[: expected.index(expected[2]) + 1]


def test_a_stop_condition_ends_its_request_and_one_that_raises_fails_it(engine: Engine, model: GPTJForCausalLM) -> None:
    def stop(generated: Sequence[int]) -> bool:
        return len(generated) == 4

    def broken(generated: Sequence[int]) -> bool:
        raise ValueError("the record's text")

    results = engine.run([make_request([5], stop=stop), make_request([5], stop=broken, key="b"), make_request([5])])
    assert tokens(results[0]) == greedy(model, [5], 4)
    assert results[1] == Failed(key="b", error="the request's stop condition raised ValueError; correct it")
    assert tokens(results[2]) == greedy(model, [5])


def test_logits_that_are_not_finite_fail_their_request_only_and_leave_nothing_in_the_cache(
    model: GPTJForCausalLM,
) -> None:
    prompts = [[5, 6, 60, 8, 9], [7], [60], [5, 6], [9, 9, 60] + [4] * 12, [3, 4], [8] * 7]
    expected = [None if 60 in prompt else greedy(model, prompt) for prompt in prompts]
    with torch.no_grad():
        kept = model.transformer.wte.weight[60].clone()
        model.transformer.wte.weight[60] = torch.inf
        engine = Engine(model, TIGHT)
        results = engine.run([make_request(prompt) for prompt in prompts] * 2)
        model.transformer.wte.weight[60] = kept
    for result, tokens_expected in zip(results, expected * 2, strict=True):
        if tokens_expected is None:
            assert isinstance(result, Failed)
            assert "not finite" in result.error
        elif 60 not in tokens_expected:
            assert tokens(result) == tokens_expected
    assert engine.scheduler.pool.num_used == 0


def test_a_request_whose_logits_are_not_finite_spoils_nobody_who_begins_in_the_same_way(
    model: GPTJForCausalLM,
) -> None:
    shared = [5, 6, 7, 8, 9]
    prompts = [[*shared, 60], [*shared, 10], [*shared, 11], [*shared, 60, 9]]
    expected = [greedy(model, prompt, 4) for prompt in prompts]
    with torch.no_grad():
        kept = model.transformer.wte.weight[60].clone()
        model.transformer.wte.weight[60] = torch.inf
        engine = Engine(model, EngineConfig(num_blocks=20, block_size_tokens=4))
        results = engine.run([make_request(prompt, max_new_tokens=4) for prompt in prompts])
        model.transformer.wte.weight[60] = kept
    assert [type(result) for result in results] == [Failed, Generated, Generated, Failed]
    assert [tokens(result) for result in results[1:3]] == expected[1:3]
    assert engine.scheduler.num_cached_prompt_tokens >= 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_given_where_asked_for(engine: Engine, model: GPTJForCausalLM, temperature: float) -> None:
    with_them, without = engine.run(
        [make_request([5, 6], logprobs=True, temperature=temperature, top_p=0.9), make_request([5, 6])]
    )
    assert isinstance(with_them, Generated)
    assert isinstance(without, Generated)
    assert without.logprobs is None
    assert with_them.logprobs is not None
    with torch.no_grad():
        logprobs = model(torch.tensor([[5, 6, *with_them.token_ids]])).logits[0].log_softmax(-1)
    expected = [float(logprobs[1 + place, token]) for place, token in enumerate(with_them.token_ids)]
    assert with_them.logprobs == pytest.approx(expected, abs=1e-5)


def test_labels_and_continuations_may_be_asked_for_together(engine: Engine, model: GPTJForCausalLM) -> None:
    labels = LabelRequest(key="l", prompt_token_ids=[5, 6, 7], label_token_ids=((8,), (9, 10)))
    results = engine.run([labels, make_request([5, 6]), labels])
    assert isinstance(results[0], Labelled)
    assert results[0].num_prompt_tokens == 3
    assert results[0] == results[2]
    assert tokens(results[1]) == greedy(model, [5, 6])
    alone = engine.score_labels([labels])[0]
    assert isinstance(alone, Labelled)
    assert alone.label_logprobs == pytest.approx(results[0].label_logprobs, abs=1e-5)


def test_the_weights_are_not_copied_and_a_small_engine_is_small(model: GPTJForCausalLM) -> None:
    before = model.lm_head.weight.data_ptr()
    engine = Engine(model, EngineConfig(num_blocks=1, block_size_tokens=16))
    assert engine.model is model
    assert model.lm_head.weight.data_ptr() == before
    assert engine.bounds.num_blocks == 1


def test_a_device_that_the_model_is_not_on_is_refused(model: GPTJForCausalLM) -> None:
    with pytest.raises(ConfigError, match=r"device must be where the model is \(cpu\), got cuda"):
        Engine(model, EngineConfig(device="cuda"))


def test_the_cache_is_no_larger_than_asked_for_though_the_kernels_pad_channels() -> None:
    small_heads = GPTJForCausalLM(
        GPTJConfig(vocab_size=9, n_positions=64, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
    )
    for kernels, width in (("auto", 16), ("torch", 8)):
        engine = Engine(small_heads, EngineConfig(kv_cache_bytes=100_000, kernels=kernels))
        assert engine.bounds.num_blocks == 100_000 // (16 * 2 * 2 * width * 4)
