"""Steps that do not fit the memory: smaller ones take their place, and what never fits fails alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from gptj_batch import Failed, LabelRequest, Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.engine.out_of_memory import is_out_of_memory
from gptj_batch.model import GPTJForCausalLM
from gptj_batch.results import AnyResult

CONFIG = EngineConfig(max_step_tokens=128, max_running=16, num_blocks=64, block_size_tokens=4)


def requests(num_beams: int = 1) -> list[Request]:
    sampling = SamplingParams(max_new_tokens=9, ignore_eos=True, num_beams=num_beams)
    prompts = [[5, 6, 7], [8], list(range(9, 40)), [17, 18], [19] * 11, list(range(9, 35)), [40, 41]]
    return [Request(key=str(place), prompt_token_ids=ids, sampling=sampling) for place, ids in enumerate(prompts)]


def bounded(engine: Engine, max_tokens: int, error: Callable[[], BaseException]) -> list[int]:
    """Let steps of more tokens fail as they do on a device that is too small; return the sizes that were tried."""
    assert engine.runner is not None
    run, sizes = engine.runner.run, list[int]()

    def small(step: Any) -> Any:
        sizes.append(step.num_tokens)
        if step.num_tokens > max_tokens:
            raise error()
        return run(step)

    engine.runner.run = small  # type: ignore[method-assign]
    return sizes


def of_cuda() -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def of_the_cpu() -> BaseException:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [of_cuda, of_the_cpu, MemoryError])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_steps_become_smaller_until_they_fit_and_no_result_changes(
    model: GPTJForCausalLM, error: Callable[[], BaseException], num_beams: int
) -> None:
    expected = Engine(model, CONFIG).run(requests(num_beams))
    engine = Engine(model, CONFIG)
    sizes = bounded(engine, 20, error)
    found = engine.run(requests(num_beams))
    assert [replace(one, score=None) for one in found] == [replace(one, score=None) for one in expected]
    assert max(sizes) > 20 and sizes[-1] <= 20 and len([size for size in sizes if size > 20]) <= 3
    assert engine.bounds.max_step_tokens == 16
    engine.scheduler.check()
    assert engine.scheduler.pool.num_used == 0


def test_what_fits_in_no_step_fails_and_what_comes_later_is_done(model: GPTJForCausalLM) -> None:
    engine = Engine(model, CONFIG)
    bounded(engine, 2, of_cuda)
    results = engine.run(requests()[2:3])
    assert isinstance(results[0], Failed) and results[0].error.startswith("out of memory: not even a small step")
    assert engine.run(requests()[1:2]) == Engine(model, CONFIG).run(requests()[1:2])
    assert engine.scheduler.pool.num_used == 0 and not engine.has_unfinished


def test_another_error_is_the_engines_end(model: GPTJForCausalLM) -> None:
    engine = Engine(model, CONFIG)
    bounded(engine, 2, lambda: RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        engine.run(requests())


def rows() -> list[LabelRequest]:
    prompts = [[10 + place] * (3 + 4 * place) for place in range(12)]
    return [
        LabelRequest(key=str(n), prompt_token_ids=ids, label_token_ids=((7,), (8, 9))) for n, ids in enumerate(prompts)
    ]


def narrow(engine: Engine, max_tokens: int) -> None:
    encode = engine.single_pass._encode

    def small(packed: Any, num_layers: int | None) -> Any:
        if len(packed.token_ids) > max_tokens:
            raise of_cuda()
        return encode(packed, num_layers)

    engine.single_pass._encode = small  # type: ignore[method-assign]


def logprobs(results: list[AnyResult]) -> list[Any]:
    return [None if isinstance(one, Failed) else getattr(one, "label_logprobs", None) for one in results]


def test_rows_of_one_pass_are_answered_a_few_at_a_time(model: GPTJForCausalLM) -> None:
    expected = logprobs(Engine(model, CONFIG).run(rows()))
    engine = Engine(model, CONFIG)
    narrow(engine, 60)
    found = logprobs(engine.run(rows()))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_row_of_one_pass_that_never_fits_fails_alone(model: GPTJForCausalLM) -> None:
    engine = Engine(model, CONFIG)
    narrow(engine, 40)
    results = engine.run(rows())
    failed = [place for place, one in enumerate(results) if isinstance(one, Failed)]
    assert failed and failed == list(range(failed[0], 12)) and failed[0] > 5, "the longest"


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("can't allocate memory")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)
