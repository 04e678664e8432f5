"""What a replica of a run is started with, by Ray or in this process."""

import os

from gptj_batch.backends.base import Backend
from gptj_batch.backends.vllm_limits import holding
from gptj_batch.stages.infer import ReplicaSettings, start_backend
from pipelines.prepare import Run


def replica_settings(run: Run, device: str | None, num_threads: int) -> ReplicaSettings:
    """Return what each replica is started with; device None is the best that is there."""
    backend, model = run.job.backend, run.job.model
    return ReplicaSettings(
        kind="native" if backend.kind == "auto" else backend.kind,
        model_path=run.model_path,
        revision=model.revision,
        dtype=model.dtype,
        device=device,
        num_threads=num_threads,
        max_step_tokens=backend.max_step_tokens,
        max_running=backend.max_running,
        kv_cache_gb=backend.kv_cache_gb,
        prefix_caching=backend.prefix_caching,
        pooling=getattr(run.job.task, "pooling", None),  # of the task `embed`
        holds_texts=bool(holding(run.job.task.model_dump())),
        tensor_parallel=backend.tensor_parallel,
        engine_kwargs=backend.engine_kwargs,
    )


def start_here(run: Run) -> Backend:
    """Start the run's engine in this process, on all of its cores. Raises ConfigError or CheckpointError."""
    return start_backend(replica_settings(run, None, os.cpu_count() or 1), run.task.head)
