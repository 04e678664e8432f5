"""A replica that stays: one loaded model that serves the tables of one task after another, or of several at once."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from gptj_batch.model_folder import Head
from gptj_batch.stages.infer import InferStage, ReplicaSettings, start_backend
from gptj_batch.tasks.base import Task

# A task's stage holds what it made of the tokenizer, such as a grammar; cells that are run again find theirs here.
MAX_TASKS = 16


@dataclass
class _Activity:
    """How many calls are being served, and when the last one ended."""

    num_calls: int = 0
    last_s: float = field(default_factory=time.monotonic)


class Replica:
    """Hold a backend; every task has an `InferStage` of its own on it.

    node: tells where this is, asked in the replica's own process
    """

    def __init__(self, settings: ReplicaSettings, head: Head, node: Callable[[], str]) -> None:
        self._settings = settings
        self._head = head
        self._node = node
        self._backend = start_backend(settings, head)
        self._stages: OrderedDict[str, InferStage] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()  # what a task is made of may take a while, and may ask the model
        self._activity = _Activity()

    def infer(self, name: str, task: Task, table: pa.Table) -> pa.Table:
        """Run a task's table; see `InferStage`. `name` stands for the task, with all its settings.

        Raises BackendError where the engine has failed: this replica is then of no more use.
        """
        with self._lock:
            self._activity.num_calls += 1
        try:
            return self._stage(name, task)(table)
        finally:
            with self._lock:
                self._activity = _Activity(self._activity.num_calls - 1)

    def idle_s(self) -> float:
        """Return for how long nothing was asked of it; 0 while something is."""
        with self._lock:
            return 0.0 if self._activity.num_calls else time.monotonic() - self._activity.last_s

    def facts(self) -> dict[str, Any]:
        """Return plain facts: which model, node and process this is, and what the backend says of itself."""
        settings = self._settings
        return {
            "model": settings.model_path,
            "revision": settings.revision,
            "head": self._head,
            "node": self._node(),
            "pid": os.getpid(),
            **self._backend.describe(),
        }

    def _stage(self, name: str, task: Task) -> InferStage:
        with self._making:
            if name not in self._stages:
                self._stages[name] = InferStage(task, self._settings, backend=self._backend)
                if len(self._stages) > MAX_TASKS:
                    self._stages.popitem(last=False)
            self._stages.move_to_end(name)
            return self._stages[name]
