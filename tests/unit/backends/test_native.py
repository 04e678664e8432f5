import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from gptj_batch import Failed, Generated, Labelled, LabelRequest, Request, SamplingParams
from gptj_batch.backends import make_backend
from gptj_batch.backends.native import NativeBackend, resolve_dtype
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.engine.prepare import why_no_cpu_kernels
from gptj_batch.errors import BackendError
from gptj_batch.model import GPTJConfig, GPTJForCausalLM
from gptj_batch.results import AnyResult

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def model() -> GPTJForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}
    return GPTJForCausalLM(GPTJConfig(**shape, eos_token_id=1, initializer_range=0.35)).eval()  # type: ignore[arg-type]


@pytest.fixture
def engine(model: GPTJForCausalLM) -> Engine:
    return Engine(model, EngineConfig(max_running=4, num_blocks=20, block_size_tokens=8))


@pytest.fixture
def backend(engine: Engine) -> Iterator[NativeBackend]:
    backend = NativeBackend(engine)
    yield backend
    backend.close()


def make_request(prompt: list[int], stop: Any = None, max_new_tokens: int = 6) -> Request:
    sampling = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    return Request(key="a", prompt_token_ids=prompt, sampling=sampling, stop=stop)


class Gate:
    """A stop condition that holds the engine's thread until it is opened, and says when it has got there."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, generated: Sequence[int]) -> bool:
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)
        return False


def test_results_stand_in_the_order_of_the_requests(backend: NativeBackend, model: GPTJForCausalLM) -> None:
    labels = LabelRequest(key="l", prompt_token_ids=[5], label_token_ids=((6,), (7, 8)))
    requests = [make_request([5, 6]), make_request([]), labels, make_request([9])]
    results = backend.run(requests)
    assert [type(result) for result in results] == [Generated, Failed, Labelled, Generated]
    assert results == Engine(model).run(requests)
    assert (backend.counts().num_prompt_tokens, backend.counts().num_generated_tokens) == (4, 12)


def test_no_request_is_answered_at_once(backend: NativeBackend) -> None:
    assert backend.run([]) == []


def test_calls_from_many_threads_share_the_engine_and_each_gets_its_own(
    backend: NativeBackend, model: GPTJForCausalLM
) -> None:
    calls = [[make_request([5 + call, 6 + row]) for row in range(5)] for call in range(8)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(backend.run, calls, timeout=PATIENCE_S))
    assert together == [Engine(model).run(call) for call in calls]


def test_a_second_call_runs_while_the_first_is_not_done(engine: Engine, backend: NativeBackend) -> None:
    gate = Gate()
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(backend.run, [make_request([5], stop=gate, max_new_tokens=40)])
        assert gate.reached.wait(PATIENCE_S)
        quick = threads.submit(backend.run, [make_request([6], max_new_tokens=2)])
        gate.opened.set()
        assert len(quick.result(PATIENCE_S)) == len(slow.result(PATIENCE_S)) == 1


def test_when_the_engine_dies_waiting_and_later_calls_say_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = NativeBackend(engine)
    gate = Gate()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(backend.run, [make_request([5], stop=gate)])
        assert gate.reached.wait(PATIENCE_S)
        second = threads.submit(backend.run, [make_request([6])])

        def broken_step() -> list[AnyResult]:
            raise MemoryError("CUDA out of memory")

        monkeypatch.setattr(engine, "step", broken_step)
        gate.opened.set()
        for waiting in (first, second):
            with pytest.raises(BackendError, match="MemoryError: CUDA out of memory") as caught:
                waiting.result(PATIENCE_S)
            assert isinstance(caught.value.__cause__, MemoryError)
    with pytest.raises(BackendError, match="the engine stopped"):
        backend.run([make_request([5])])
    backend.close()


def test_closing_wakes_who_waits_and_refuses_who_comes(engine: Engine) -> None:
    backend = NativeBackend(engine)
    gate = Gate()
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(backend.run, [make_request([5], stop=gate, max_new_tokens=90)])
        assert gate.reached.wait(PATIENCE_S)
        closing = threads.submit(backend.close)
        with pytest.raises(BackendError, match="has been closed"):
            waiting.result(PATIENCE_S)
        gate.opened.set()
        closing.result(PATIENCE_S)
    with pytest.raises(BackendError, match="has been closed"):
        backend.run([make_request([5])])
    backend.close()


def test_the_factory_loads_a_checkpoint_and_describes_it(model: GPTJForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    backend = make_backend(
        "auto",
        model_path=tmp_path,
        dtype="float32",
        device="cpu",
        max_step_tokens=16,
        max_running=3,
        kv_cache_gb=0.0001,
        prefix_caching=False,
    )
    facts = backend.describe()
    assert facts.pop("paged_attention") in ("c++", f"torch ({why_no_cpu_kernels(model.device, model.dtype, 16)})")
    assert facts == {
        "kind": "native",
        "device": "cpu",
        "dtype": "float32",
        "max_step_tokens": 16,
        "max_running": 3,
        "num_blocks": 13,
        "block_size_tokens": 16,
        "prefix_caching": False,
    }
    assert backend.run([make_request([5, 6])]) == Engine(model).run([make_request([5, 6])])
    backend.close()


def test_dtype_auto_is_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("float32", "cuda") == "float32"
    assert resolve_dtype("auto", "cuda") == "float16"
    for has_it, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("gptj_batch.backends.native._cpu_has_bfloat16", lambda has_it=has_it: has_it)
        assert resolve_dtype("auto", "cpu") == dtype
