"""Which engine a job runs on: what cannot work is refused before anything starts, and `auto` is decided."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptj_batch.backends.vllm_install import argument_names, installed
from gptj_batch.backends.vllm_limits import why_not
from gptj_batch.backends.vllm_memory import MemoryPlan
from gptj_batch.backends.vllm_settings import check_engine_kwargs
from gptj_batch.errors import ConfigError
from gptj_batch.model_folder import read_config
from pipelines.config import Job

EngineKind = Literal["native", "vllm", "fake"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine that is run on, and why."""

    kind: EngineKind
    reason: str

    def __str__(self) -> str:
        return f"backend: {self.kind} ({self.reason})"


def check_backend(job: Job) -> None:
    """Raise ConfigError where the job's engine is not here, cannot do its task, or does not know its settings."""
    backend, replicas = job.backend, job.replicas
    if backend.kind in ("native", "fake"):
        for name, is_set in (
            ("tensor_parallel", backend.tensor_parallel > 1),
            ("engine_kwargs", backend.engine_kwargs),
        ):
            if is_set:
                raise ConfigError(f"backend.{name} belongs to backend.kind vllm, got {backend.kind}; leave it out")
        return
    check_engine_kwargs(backend.engine_kwargs, argument_names())
    if backend.tensor_parallel > 1 and replicas.gpus_each not in (None, backend.tensor_parallel):
        raise ConfigError(
            f"replicas.gpus_each ({replicas.gpus_each:g}) must be backend.tensor_parallel "
            f"({backend.tensor_parallel}), or be left out"
        )
    if backend.kind == "vllm" and (problem := _problem(job)):
        raise ConfigError(problem)


def check_here(job: Job) -> None:
    """Raise ConfigError where this machine, which is to be the whole cluster, cannot compute in the job's dtype.

    A replica would say the same, once Ray has started it.
    """
    if job.model.dtype != "int8" or job.backend.kind == "fake":
        return
    from gptj_batch.engine.prepare import why_no_int8  # brings torch, for which no other job waits here

    if problem := why_no_int8():
        raise ConfigError(f"model.dtype: {problem}")


def choose_backend(job: Job, has_gpu: bool) -> Choice:
    """Decide `auto`: vLLM where it is installed, has a GPU and can do the task, else the native engine."""
    kind = job.backend.kind
    if kind != "auto":
        return Choice(kind=kind, reason="as the job says")
    if not has_gpu:
        return Choice(kind="native", reason="no GPU")
    if problem := _problem(job):
        return Choice(kind="native", reason=problem)
    return Choice(kind="vllm", reason=f"vllm {installed().vllm} is installed, has a GPU and can do the task")


def with_backend(job: Job, kind: EngineKind) -> Job:
    """Return the job on this engine; what belongs to vLLM alone is left out for the others."""
    update: dict[str, Any] = {"kind": kind} | ({} if kind == "vllm" else {"tensor_parallel": 1, "engine_kwargs": {}})
    return job.model_copy(update={"backend": job.backend.model_copy(update=update)})


def gpus_of_replica(job: Job, choice: Choice, has_gpu: bool) -> float | None:
    """Return the GPUs that each replica claims; None leaves it to the cluster.

    A replica's GPUs are one claim of one actor, so Ray gives it all of them on one node, or none.
    """
    split = job.backend.tensor_parallel
    return float(split) if choice.kind == "vllm" and split > 1 and has_gpu else job.replicas.gpus_each


def memory_plan(job: Job, model_folder: Path) -> MemoryPlan:
    """Return what the model takes of a GPU on vLLM; `auto` computes in float16 there."""
    dtype = "float16" if job.model.dtype == "auto" else job.model.dtype
    backend = job.backend
    return MemoryPlan.of(read_config(model_folder), dtype, backend.engine_kwargs, backend.tensor_parallel)


def _problem(job: Job) -> str | None:
    """Return why vLLM cannot run the job, or None."""
    settings: dict[str, Any] = job.task.model_dump()
    if problem := why_not(settings, job.model.dtype):
        return problem
    problem = installed().why_unusable()
    return None if problem is None else f"backend.kind: {problem}"
