from contextlib import nullcontext
from typing import Any

import pytest

from gptj_batch.backends.vllm_install import Installed
from gptj_batch.demo import demo_folder
from gptj_batch.errors import ConfigError
from pipelines import backend_choice
from pipelines.backend_choice import check_backend, check_here, choose_backend, gpus_of_replica, memory_plan
from pipelines.config import Job

GENERATE: dict[str, Any] = {"kind": "generate", "prompt": "{{ text }}"}
FITTING = Installed(vllm="0.32.0", torch="2.13.0", transformers="5.19.0")
MISSING = Installed(vllm=None, torch="2.13.0", transformers=None)
NAMES = frozenset({"gpu_memory_utilization", "quantization"})


def job(task: dict[str, Any] | None = None, replicas: dict[str, Any] | None = None, **backend: Any) -> Job:
    return Job.model_validate(
        {
            "name": "n",
            "input": {"path": "x"},
            "task": {**GENERATE, **(task or {})},
            "backend": backend,
            "replicas": replicas or {},
            "output": {"path": "out"},
        }
    )


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_choice, "installed", lambda: FITTING)
    monkeypatch.setattr(backend_choice, "argument_names", lambda: NAMES)


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_choice, "installed", lambda: MISSING)
    monkeypatch.setattr(backend_choice, "argument_names", frozenset)


def test_auto_takes_vllm_where_it_is_there_has_a_gpu_and_can_do_the_task(with_vllm: None) -> None:
    choice = choose_backend(job(), has_gpu=True)
    assert choice.kind == "vllm"
    assert str(choice) == "backend: vllm (vllm 0.32.0 is installed, has a GPU and can do the task)"


def test_auto_is_native_without_a_gpu(with_vllm: None) -> None:
    assert str(choose_backend(job(), has_gpu=False)) == "backend: native (no GPU)"


def test_auto_is_native_without_vllm_and_says_how_to_get_it(without_vllm: None) -> None:
    choice = choose_backend(job(), has_gpu=True)
    assert choice.kind == "native" and "vllm is not installed" in choice.reason and "pip install" in choice.reason


def test_auto_is_native_for_what_vllm_cannot_do(with_vllm: None) -> None:
    choice = choose_backend(job({"num_beams": 4}), has_gpu=True)
    assert choice.kind == "native" and choice.reason.startswith("task.num_beams: vLLM has no beam search")


@pytest.mark.parametrize("kind", ["native", "vllm", "fake"])
def test_what_the_job_says_is_taken(with_vllm: None, kind: str) -> None:
    assert str(choose_backend(job(kind=kind), has_gpu=True)) == f"backend: {kind} (as the job says)"


def test_vllm_without_vllm_is_refused_with_what_to_install(without_vllm: None) -> None:
    with pytest.raises(ConfigError, match=r"backend\.kind: vllm is not installed; it takes .*pip install"):
        check_backend(job(kind="vllm"))
    check_backend(job(kind="auto"))


def test_vllm_is_refused_for_a_task_that_it_cannot_do(with_vllm: None) -> None:
    with pytest.raises(ConfigError, match=r"task\.logprobs: .* set backend.kind to native"):
        check_backend(job({"regex": "a+", "logprobs": True}, kind="vllm"))
    check_backend(job({"regex": "a+", "logprobs": True}, kind="auto"))
    check_backend(job({"regex": "a+"}, kind="vllm"))
    check_backend(job(kind="vllm", engine_kwargs={"gpu_memory_utilization": 0.8}, tensor_parallel=2))


@pytest.mark.parametrize("settings", [{"tensor_parallel": 2}, {"engine_kwargs": {"quantization": "fp8"}}])
def test_settings_of_vllm_belong_to_no_other(with_vllm: None, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"belongs to backend\.kind vllm, got native; leave it out"):
        check_backend(job(kind="native", **settings))


def test_an_argument_that_vllm_does_not_have_is_refused(with_vllm: None) -> None:
    with pytest.raises(ConfigError, match=r"backend\.engine_kwargs\.quantisation: .* did you mean quantization"):
        check_backend(job(engine_kwargs={"quantisation": "fp8"}))


def test_a_replica_of_several_gpus_claims_them(with_vllm: None) -> None:
    split = job(kind="vllm", tensor_parallel=2)
    choice = choose_backend(split, has_gpu=True)
    assert gpus_of_replica(split, choice, has_gpu=True) == 2.0
    assert gpus_of_replica(split, choice, has_gpu=False) is None
    assert gpus_of_replica(job(replicas={"gpus_each": 0.5}), choose_backend(job(), True), has_gpu=True) == 0.5


def test_a_claim_that_is_not_its_parts_is_refused(with_vllm: None) -> None:
    check_backend(job(replicas={"gpus_each": 2.0}, tensor_parallel=2))
    with pytest.raises(ConfigError, match=r"replicas.gpus_each \(1\) must be backend.tensor_parallel \(2\)"):
        check_backend(job(replicas={"gpus_each": 1.0}, tensor_parallel=2))


def test_the_memory_of_a_model_is_planned_for_what_the_job_says() -> None:
    whole = memory_plan(job(engine_kwargs={"gpu_memory_utilization": 0.5}), demo_folder("causal-lm"))
    half = memory_plan(job(tensor_parallel=2), demo_folder("causal-lm"))
    assert whole.utilization == 0.5
    assert half.weight_bytes == whole.weight_bytes // 2


NO_VNNI = "dtype int8 needs another CPU"


def int8(**backend: Any) -> Job:
    plain = job(**backend)
    return plain.model_copy(update={"model": plain.model.model_copy(update={"dtype": "int8"})})


@pytest.mark.parametrize(("made", "is_refused"), [(int8(), True), (int8(kind="fake"), False), (job(), False)])
def test_a_machine_that_has_no_int8_refuses_it(monkeypatch: pytest.MonkeyPatch, made: Job, is_refused: bool) -> None:
    monkeypatch.setattr("gptj_batch.engine.prepare.why_no_int8", lambda: NO_VNNI)
    with pytest.raises(ConfigError, match=f"^model.dtype: {NO_VNNI}$") if is_refused else nullcontext():
        check_here(made)


def test_a_machine_that_has_int8_lets_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptj_batch.engine.prepare.why_no_int8", lambda: None)
    check_here(int8())
