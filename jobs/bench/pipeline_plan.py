"""What the pipelines' benchmark measures: programs that do the same rows, and what is said of their times.

Settings are each program's best here; what was tried stands beside them.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from jobs.bench.checkpoints import KV_BYTES_PER_TOKEN

Program = Literal["ours", "ray.data.llm", "map_batches", "bare engine"]
Clock = Literal["steady", "cold"]

NEW_TOKENS: Final = 16
KV_CACHE_BYTES: Final = 65_536 * KV_BYTES_PER_TOKEN
# The arguments of vLLM's engine, in our job and in ray.data.llm's processor alike; 32 tokens a block is the suite's own
# choice for it (vllm_env.py).
ENGINE: Final = {"block_size": 32}


@dataclass(frozen=True, kw_only=True)
class PipelineLeg:
    """One program, with its settings.

    share: of the workload's rows; less for a program that would take too long, the figure is a rate
    batch_sizes: which are tried before the rounds, when the best is kept    counts_for: whose goal it is held against
    """

    name: str
    program: Program
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    batch_sizes: tuple[int, ...] = ()
    counts_for: str | None = None


@dataclass(frozen=True, kw_only=True)
class PipelineWorkload:
    """One line of the table. The first leg is the one that the others are compared with.

    clock: steady is the time from the first rows that reach the loaded model to the last that is on the disk; cold
        begins with the start of the process
    """

    id: str
    title: str
    num_rows: int
    clock: Clock
    legs: tuple[PipelineLeg, ...]
    goals: dict[str, float]


NATIVE: Final = PipelineLeg(name="ours, native", program="ours", settings={"kind": "native"})
VLLM: Final = PipelineLeg(name="ours, vllm", program="ours", settings={"kind": "vllm", "engine_kwargs": ENGINE})
RAY_LLM: Final = PipelineLeg(
    name="ray.data.llm",
    program="ray.data.llm",
    settings={"engine": ENGINE, "batch_size": 32, "max_concurrent_batches": 16, "block_rows": 32},
    counts_for="ray.data.llm",
)
MAP_BATCHES: Final = PipelineLeg(
    name="map_batches, transformers",
    program="map_batches",
    settings={"block_rows": 64},
    share=0.25,
    batch_sizes=(16, 64),
    counts_for="transformers",
)
BARE: Final = PipelineLeg(name="our engine, no Ray", program="bare engine", counts_for="bare engine")
SCRIPT: Final = PipelineLeg(
    name="transformers, no Ray",
    program="map_batches",
    settings={"ray": False, "batch_size": 64},
)

W7: Final = PipelineWorkload(
    id="W7",
    title="Parquet to Parquet through Ray: 2,000 AG News articles, 16 tokens out",
    num_rows=2000,
    clock="steady",
    legs=(NATIVE, RAY_LLM, MAP_BATCHES, BARE),
    goals={"ray.data.llm": 1.3, "transformers": 2.5, "bare engine": 0.93},
)
W8: Final = PipelineWorkload(
    id="W8",
    title="cold start: 64 of the articles, from the start of the process to files on the disk",
    num_rows=64,
    clock="cold",
    legs=(NATIVE, RAY_LLM, MAP_BATCHES, SCRIPT),
    goals={"ray.data.llm": 6.0, "transformers": 2.0},
)
W13: Final = PipelineWorkload(
    id="W13",
    title="W7 with vLLM in both pipelines, its arguments the same",
    num_rows=2000,
    clock="steady",
    legs=(VLLM, RAY_LLM),
    goals={"ray.data.llm": 1.1},
)

PIPELINES: Final = (W7, W8, W13)
