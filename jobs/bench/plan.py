"""What is measured: a workload, the legs that do its work in their different ways, and how much of it is run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptj_batch.model_folder import Head
from jobs.bench.work import Work

EngineName = Literal["ours", "transformers", "vllm"]
Unit = Literal["tokens/s", "rows/s"]

BATCH_SIZES = (1, 16, 64)
MIN_ROWS = 4


def nothing_missing() -> str | None:
    """Return None: the workload runs anywhere."""
    return None


@dataclass(frozen=True, kw_only=True)
class LegSpec:
    """One way to do a workload's work.

    load: what is set, when the engine is loaded, other than for every leg    options: how it is run
    max_rows: fewer rows of the same distribution for a peer that would take too long; the figure is a rate.
    repeats: how often the rows are run for one figure, other rows each time, where one run would be too short.
    batch_sizes: which are tried before the rounds, when the best is kept; empty where batches are the engine's matter.
    counts_for: whose goal this leg is held against; the rest are printed beside it. Where several are, the goal is
        met when it is against each.
    """

    name: str
    engine: EngineName
    options: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    max_rows: int | None = None
    repeats: int = 1
    batch_sizes: tuple[int, ...] = ()
    counts_for: str | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One line of the table. The first leg is the one that the others are compared with.

    make: number of rows, seed -> the work
    rounds: other than asked for on the command line    missing: says why it cannot be run here, or None
    must_equal: the legs' answers are equal, or something is broken
    min_agreement: the share of rows in which the first leg must choose the label that the others choose
    max_spread: how far apart the legs' rates may lie, where these are one engine under different loads
    """

    id: str
    title: str
    unit: Unit
    make: Callable[[int, int], Work]
    num_rows: int
    legs: tuple[LegSpec, ...]
    goals: dict[str, float]
    head: Head = "causal-lm"
    kv_tokens: int = 65_536
    rounds: int | None = None
    missing: Callable[[], str | None] = nothing_missing
    must_equal: bool = False
    min_agreement: float | None = None
    max_spread: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is run: rounds, and the part of a workload's rows (less than 1 only to try the suite out)."""

    rounds: int
    share: float
    folder: Path

    def num_rows(self, workload: Workload, leg: LegSpec) -> int:
        """Return how many rows a leg gets."""
        rows = workload.num_rows if leg.max_rows is None else min(workload.num_rows, leg.max_rows)
        return max(MIN_ROWS, round(rows * self.share))


def ours(
    name: str = "ours",
    *,
    dtype: str | None = None,
    max_rows: int | None = None,
    repeats: int = 1,
    counts_for: str | None = None,
) -> LegSpec:
    """Return our engine as it comes."""
    return LegSpec(
        name=name,
        engine="ours",
        load={} if dtype is None else {"dtype": dtype},
        max_rows=max_rows,
        repeats=repeats,
        counts_for=counts_for,
    )


def transformers(
    *, batch_sizes: tuple[int, ...] = BATCH_SIZES, max_rows: int | None = None, dtype: str | None = None
) -> LegSpec:
    """Return transformers, the rows in the order in which they come."""
    return LegSpec(
        name="transformers",
        engine="transformers",
        load={} if dtype is None else {"dtype": dtype},
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


def vllm(
    name: str = "vllm",
    *,
    load: dict[str, Any] | None = None,
    method: str | None = None,
    max_rows: int | None = None,
) -> LegSpec:
    """Return vLLM, in the setting that is its fastest here (see vllm_env.py)."""
    return LegSpec(
        name=name,
        engine="vllm",
        options={} if method is None else {"method": method},
        load=load or {"vllm": {"block_size": 32}},
        max_rows=max_rows,
        counts_for="vllm",
    )
