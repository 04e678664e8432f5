"""The fleet: the workers of a benchmark, each engine in a process of its own, started when it is first needed."""

import json
import os
from pathlib import Path

from jobs.bench.checkpoints import KV_BYTES_PER_TOKEN, SHAPE, checkpoint
from jobs.bench.plan import EngineName, LegSpec, Workload
from jobs.bench.protocol import Message, Worker, WorkerError
from jobs.bench.vllm_env import vllm_environment, vllm_python

PYTHON = Path(".venv") / "bin" / "python"
MODULES: dict[EngineName, str] = {
    "ours": "jobs.bench.ours_worker",
    "transformers": "jobs.bench.transformers_worker",
    "vllm": "jobs.bench.vllm_worker",
}


class Fleet:
    """Start workers and keep those that the next workload can use as well."""

    def __init__(self, *, threads: int, dtype: str, folder: Path) -> None:
        """`dtype` is that of legs that name none, and of the matrix products before all; `folder` takes the logs."""
        self._threads = threads
        self._dtype = dtype
        self._folder = folder
        self._workers: dict[tuple[str, str], Worker] = {}
        self._loaded: dict[tuple[str, str], Message] = {}

    def get(self, workload: Workload, leg: LegSpec) -> tuple[Worker, Message]:
        """Return the worker that a leg runs on and what loading it took. Raises WorkerError where it cannot start."""
        setup = self._setup(workload, leg)
        key = _key(leg, setup)
        if key not in self._workers:
            worker = self._start(leg.engine)
            try:
                self._loaded[key] = worker.ask({"op": "load", **setup})
            except WorkerError:
                worker.close()
                raise
            self._workers[key] = worker
        return self._workers[key], self._loaded[key]

    def keep_only(self, needed: list[tuple[Workload, LegSpec]]) -> None:
        """End the workers that none of these legs uses."""
        keys = {_key(leg, self._setup(workload, leg)) for workload, leg in needed}
        for key in set(self._workers) - keys:
            self._workers.pop(key).close()

    def close(self) -> None:
        """End all workers."""
        self.keep_only([])

    def _setup(self, workload: Workload, leg: LegSpec) -> Message:
        return {
            "checkpoint": str(checkpoint(workload.head)),
            "head": workload.head,
            "dtype": self._dtype,
            "gemm_dtype": self._dtype,
            "threads": self._threads,
            "kv_cache_bytes": workload.kv_tokens * KV_BYTES_PER_TOKEN,
            "max_model_tokens": SHAPE["n_positions"],
            **leg.load,
        }

    def _start(self, engine: EngineName) -> Worker:
        python = vllm_python() if engine == "vllm" else PYTHON
        # Idle workers sleep instead of spinning: only one of them works at a time.
        environment = {"OMP_NUM_THREADS": str(self._threads), "TOKENIZERS_PARALLELISM": "false"}
        if engine == "vllm":
            environment |= vllm_environment(self._threads)
        return Worker([str(python), "-m", MODULES[engine]], environment, self._folder / f"{engine}-{os.getpid()}.log")


def _key(leg: LegSpec, setup: Message) -> tuple[str, str]:
    return leg.engine, json.dumps(setup, sort_keys=True)
