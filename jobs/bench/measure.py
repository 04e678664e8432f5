"""What every worker does around a leg: the machine's speed just before, the clock, and the memory on both sides.

Imports torch and nothing of ours that needs installing: it runs in vLLM's environment too.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from jobs.bench.protocol import Message, serve
from jobs.bench.work import Numbers, Work

GEMM_SIZE = 2048
GEMM_TRIES = 6
MIB = 1 << 20


class EngineUnderTest(Protocol):
    """One engine, as the workers know it."""

    def load(self, setup: Message) -> Message:
        """Load a checkpoint; return facts worth keeping (versions, bounds)."""
        ...

    def prepare(self, work: Work, options: Message) -> Callable[[], Numbers]:
        """Return what is to be timed: it does all of the work and returns the outputs, in the rows' order."""
        ...

    def counters(self) -> Message:
        """Return the engine's own counts so far (preemptions, tokens found in its cache, ...), where it keeps any."""
        ...


def gemm_gflops(dtype: torch.dtype) -> float:
    """Return the best of a few matrix products, in GFLOP/s: what the machine gives at this moment."""
    a, b = (torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(GEMM_TRIES):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * GEMM_SIZE**3 / best / 1e9


def resident_mib() -> float:
    """Return the memory that this process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def serve_engine(engine: EngineUnderTest) -> None:
    """Be the worker of this engine until the suite closes the pipe."""
    dtype = torch.bfloat16

    def load(message: Message) -> Message:
        nonlocal dtype
        torch.set_num_threads(message["threads"])
        dtype = getattr(torch, message.get("gemm_dtype", "bfloat16"))
        start = time.perf_counter()
        facts = engine.load(message)
        return {"load_s": time.perf_counter() - start, "threads": torch.get_num_threads(), **facts}

    def run(message: Message) -> Message:
        return timed_run(engine, Work.read(message["work"]), message, dtype)

    serve({"load": load, "run": run})


def timed_run(engine: EngineUnderTest, work: Work, message: Message, dtype: torch.dtype) -> dict[str, Any]:
    """Run some work once, and say how long it took and in what state the machine was."""
    call = engine.prepare(work, message.get("options", {}))
    before_counters, before_mib = engine.counters(), resident_mib()
    gc.collect()
    gflops = gemm_gflops(dtype)
    start, cpu_start = time.perf_counter(), time.process_time()
    outputs = call()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    counts = {name: value - before_counters.get(name, 0) for name, value in engine.counters().items()}
    answer = {
        "seconds": seconds,
        "gemm_gflops": gflops,
        # Well below 1 where the engine waits for something, or others took the cores.
        "cores_share": cpu_seconds / seconds / torch.get_num_threads(),
        "rss_mib": [round(before_mib, 1), round(resident_mib(), 1)],
        "counters": counts,
    }
    return {**answer, "outputs": outputs} if message.get("want_outputs", True) else answer
