"""The workloads: what is asked of every engine, in which ways, and the ratios that are the goal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from gptj_batch.model_folder import Head
from jobs.bench import rows
from jobs.bench.work import Work

EngineName = Literal["ours", "transformers", "vllm"]
Unit = Literal["tokens/s", "rows/s"]

BATCH_SIZES = (1, 16, 64)
KV_BYTES_PER_TOKEN = 2 * 8 * 1024 * 2  # keys and values, layers, width, bf16


@dataclass(frozen=True, kw_only=True)
class LegSpec:
    """One way to do a workload's work.

    max_rows: fewer rows of the same distribution for a peer that would take too long; the figure is a rate.
    batch_sizes: which are tried before the rounds, when the best is kept; empty where batches are the engine's matter.
    counts_for: the peer whose goal this leg decides; others are printed beside it.
    """

    name: str
    engine: EngineName
    options: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    max_rows: int | None = None
    batch_sizes: tuple[int, ...] = ()
    counts_for: str | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One line of the table. make: number of rows, seed -> the work"""

    id: str
    title: str
    unit: Unit
    make: Callable[[int, int], Work]
    num_rows: int
    legs: tuple[LegSpec, ...]
    goals: dict[str, float]
    head: Head = "causal-lm"
    kv_tokens: int = 65_536


def ours() -> LegSpec:
    """Return our engine as it comes."""
    return LegSpec(name="ours", engine="ours")


def transformers(*, batch_sizes: tuple[int, ...] = BATCH_SIZES, max_rows: int | None = None) -> LegSpec:
    """Return transformers, the rows in the order in which they come."""
    return LegSpec(
        name="transformers",
        engine="transformers",
        batch_sizes=batch_sizes,
        max_rows=max_rows,
        counts_for="transformers",
    )


def transformers_sorted(max_rows: int | None = None) -> LegSpec:
    """Return transformers for a user who sorts by length before batching."""
    return LegSpec(
        name="transformers, sorted",
        engine="transformers",
        options={"sorted": True},
        batch_sizes=BATCH_SIZES,
        max_rows=max_rows,
    )


def vllm(**options: Any) -> LegSpec:
    """Return vLLM."""
    return LegSpec(name="vllm", engine="vllm", options=options, counts_for="vllm")


W1 = Workload(
    id="W1",
    title="256 prompts of 8 to 96 tokens, 32 out",
    unit="tokens/s",
    make=lambda count, seed: rows.ragged(count, seed, shortest=8, longest=96, new_tokens=32),
    num_rows=256,
    legs=(ours(), transformers(), transformers_sorted(), vllm()),
    goals={"transformers": 2.5, "vllm": 1.1},
)

WORKLOADS: tuple[Workload, ...] = (W1,)
