"""NativeBackend: this package's engine, run by one thread for all callers."""

import queue
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from gptj_batch.backends.base import TokenCounts
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.errors import BackendError, shorten
from gptj_batch.model_folder import Head
from gptj_batch.requests import AnyRequest
from gptj_batch.results import AnyResult


class _Call:
    """One call of `run`: its requests, the results that have come in, and whether it is over."""

    def __init__(self, requests: Sequence[AnyRequest]) -> None:
        self.requests = list(requests)
        self.results: dict[int, AnyResult] = {}
        self.is_over = threading.Event()

    def receive(self, index: int, result: AnyResult) -> None:
        """Take a result; the last one ends the call."""
        self.results[index] = result
        if len(self.results) == len(self.requests):
            self.is_over.set()


class NativeBackend:
    """Share one engine among all calls.

    The requests of all calls wait in one queue, so those of the next table fill the engine while the last of this one
    finish; it never runs empty in between. A call returns when all its own requests are done. An unexpected exception
    ends the engine's thread: every waiting and every later call then raises BackendError.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._arrivals: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open_calls: set[_Call] = set()
        self._ending: BackendError | None = None  # set once: why no call can be served any more
        self._counts = TokenCounts()
        self._num_steps = 0
        self._thread = threading.Thread(target=self._serve, name="gptj-batch-engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        head: Head = "causal-lm",
        revision: str | None = None,
        dtype: str = "auto",
        config: EngineConfig | None = None,
    ) -> "NativeBackend":
        """Load a checkpoint and start; see `Engine.from_pretrained`. dtype: see `resolve_dtype`."""
        config = config or EngineConfig()
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = resolve_dtype(dtype, torch.device(device).type)
        return cls(Engine.from_pretrained(path, head=head, revision=revision, dtype=dtype, config=config))

    def run(self, requests: Sequence[AnyRequest]) -> list[AnyResult]:
        """Run the requests together with those of other calls; see `Backend.run`."""
        call = _Call(requests)
        with self._lock:
            self._raise_if_over()
            if not call.requests:
                return []
            self._open_calls.add(call)
        self._arrivals.put(call)
        try:
            call.is_over.wait()
        finally:
            with self._lock:
                self._open_calls.discard(call)
        if len(call.results) < len(call.requests):
            self._raise_if_over()
        return [call.results[index] for index in range(len(call.requests))]

    def counts(self) -> TokenCounts:
        """Return the tokens done so far."""
        return self._counts

    @property
    def num_steps(self) -> int:
        """Return how many steps the engine has made; see `Stepping`."""
        return self._num_steps

    def describe(self) -> dict[str, str | int]:
        """Return plain facts; see `Backend.describe`."""
        model, bounds = self._engine.model, self._engine.bounds
        return {
            "kind": "native",
            "device": str(model.device),
            "dtype": self._engine.dtype,
            "max_step_tokens": bounds.max_step_tokens,
            "max_running": bounds.max_running,
            "num_blocks": bounds.num_blocks,
            "block_size_tokens": bounds.block_size_tokens,
            "prefix_caching": bounds.prefix_caching,
            **self._engine.facts,
        }

    def close(self) -> None:
        """Stop after the current step; calls that still wait raise BackendError."""
        self._end(BackendError("the backend has been closed; make a new one"))
        self._arrivals.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        """Feed the engine until something ends it: the body of its thread."""
        try:
            while self._ending is None:
                self._take_arrivals()
                if self._engine.has_unfinished:
                    self._engine.step()
                    self._num_steps += 1
        except BaseException as error:  # noqa: BLE001 - whatever it was, callers must not wait for ever
            ending = BackendError(f"the engine stopped: {type(error).__name__}: {shorten(error, 300)}; start a new one")
            ending.__cause__ = error
            self._end(ending)

    def _take_arrivals(self) -> None:
        """Hand new calls' requests to the engine; wait for one if it has nothing to do."""
        may_wait = not self._engine.has_unfinished
        while may_wait or not self._arrivals.empty():
            call = self._arrivals.get()
            may_wait = False
            if call is None:
                return
            for index, request in enumerate(call.requests):
                self._engine.add(request, partial(self._receive, call, index))

    def _receive(self, call: _Call, index: int, result: AnyResult) -> None:
        self._counts = self._counts.plus(result)
        call.receive(index, result)

    def _raise_if_over(self) -> None:
        if self._ending is not None:
            # An error of one's own: threads that raise the same one would mix up its traceback.
            raise BackendError(*self._ending.args) from self._ending.__cause__

    def _end(self, reason: BackendError) -> None:
        """Let every waiting and later call fail; the first reason stands."""
        with self._lock:
            self._ending = self._ending or reason
            for call in self._open_calls:
                call.is_over.set()


def resolve_dtype(dtype: str, device_type: str) -> str:
    """Turn "auto" into float16 on a GPU, bfloat16 on a CPU that computes in it, else float32."""
    if dtype != "auto":
        return dtype
    if device_type != "cpu":
        return "float16"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    """Say whether the CPU multiplies bfloat16 natively; emulated, it is slower than float32."""
    file = Path("/proc/cpuinfo")
    flags = file.read_text().split() if file.exists() else []
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
