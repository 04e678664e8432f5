"""The profile of a run: what its columns hold, as figures that a later run is compared with. No record's text.

Labels and finish reasons are counted. Of numbers (probabilities, lengths in tokens and characters) the deciles are kept
and how many rows lie between them, so that a later run's rows can be sorted into the same bins. Of a large run every
n-th row is looked at.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_reader import read_column
from gptj_batch.tasks.base import ERROR_COLUMN
from pipelines.result_summary import COUNTED, LENGTHS, MEASURED

FAILED = "failed"
MAX_SAMPLED_ROWS = 2_000_000
MAX_VALUES = 100
_DECILES = np.linspace(0.1, 0.9, 9)

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was read of a run's columns."""

    rows: int
    counted: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    measured: Mapping[str, Numbers] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bins:
    """How numbers spread: between which edges, how many in each bin; the first and the last bin have no end."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float
    median: float

    @classmethod
    def of(cls, values: Numbers) -> "Bins":
        """Return the spread of some numbers over their own deciles; where all are equal, below, at and above them."""
        edges = np.unique(np.quantile(values, _DECILES))
        if len(edges) == 1:
            edges = np.array([np.nextafter(edges[0], -np.inf), edges[0]])
        counts = count_in_bins(values, edges.tolist())
        return cls(
            edges=tuple(edges.tolist()),
            counts=tuple(counts),
            mean=float(values.mean()),
            median=float(np.median(values)),
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """See the module; `run` is whose it is."""

    run: str
    rows: int
    counted: Mapping[str, Mapping[str, int]]
    measured: Mapping[str, Bins]

    @classmethod
    def of(cls, run: str, sample: Sample) -> "Profile":
        """Return the profile of what was read of a run."""
        return cls(
            run=run,
            rows=sample.rows,
            counted=sample.counted,
            measured={name: Bins.of(values) for name, values in sample.measured.items() if len(values)},
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Profile":
        """Return the profile that JSON of `dataclasses.asdict` holds. Raises KeyError or TypeError for other."""
        measured = {
            name: Bins(**{**bins, "edges": tuple(bins["edges"]), "counts": tuple(bins["counts"])})
            for name, bins in values["measured"].items()
        }
        return cls(run=values["run"], rows=values["rows"], counted=values["counted"], measured=measured)


def count_in_bins(values: Numbers, edges: Sequence[float]) -> list[int]:
    """Return how many values lie in each bin: at most the first edge, at most the second, ..., above the last."""
    places = np.searchsorted(np.asarray(edges), values, side="left")
    return [int(count) for count in np.bincount(places, minlength=len(edges) + 1)]


def read_sample(output: str, prefix: str, added: Sequence[str], texts: Sequence[str], num_rows: int) -> Sample:
    """Read the columns of a published run that tell something of it.

    prefix: of the added columns    texts: the input's columns that the task reads; of those, lengths in characters
    """
    folder, step = OutputFolder.at(output), -(-max(num_rows, 1) // MAX_SAMPLED_ROWS)
    gathered = _Gathered()
    for part in folder.parts():
        taken = [("", ERROR_COLUMN, prefix + ERROR_COLUMN)]
        taken += [("", name, prefix + name) for name in added if name in (*COUNTED, *MEASURED, *LENGTHS)]
        taken += [("input", name, name) for name in texts]
        columns = {(kind, name): _every(read_column(folder, part, column), step) for kind, name, column in taken}
        gathered.add(columns)
    return Sample(rows=num_rows, counted=gathered.counts(), measured=gathered.numbers())


def _every(column: pa.ChunkedArray, step: int) -> pa.ChunkedArray:
    return column if step == 1 else column.take(pa.array(np.arange(0, len(column), step)))


class _Gathered:
    """What was seen so far, in parts of equal columns."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._numbers: dict[str, list[Numbers]] = {}

    def add(self, columns: Mapping[tuple[str, str], pa.ChunkedArray]) -> None:
        """Take the columns of some rows; what a failed row has besides its error is null and counts for nothing."""
        errors = columns["", ERROR_COLUMN]
        failures = Counter({"done": errors.null_count, FAILED: len(errors) - errors.null_count})
        self._counts.setdefault(FAILED, Counter()).update(failures)
        is_done = pc.is_null(errors)
        lengths: list[Numbers] = []
        for (kind, name), column in columns.items():
            if pa.types.is_null(column.type):  # JSON lines say no type of what is null everywhere
                continue
            if kind == "input":
                if _is_text(column.type):
                    lengths.append(_as_numbers(pc.fill_null(pc.utf8_length(column), 0)))
            elif name in COUNTED:
                self._count(name, column.filter(is_done))
            elif name in MEASURED:
                self._note(name, _as_numbers(_flat(column)))
            elif name in LENGTHS:
                self._note(f"characters of {name}", _as_numbers(pc.utf8_length(_flat(column))))
        if lengths:
            self._note("characters of the input", np.sum(lengths, axis=0))

    def _count(self, name: str, column: pa.ChunkedArray) -> None:
        flat = _flat(column)
        counts = Counter({str(e["values"]): e["counts"] for e in flat.drop_null().value_counts().to_pylist()})
        counts[f"no {name}"] += column.null_count
        self._counts.setdefault(name, Counter()).update(+counts)

    def _note(self, name: str, numbers: Numbers) -> None:
        self._numbers.setdefault(name, []).append(numbers[np.isfinite(numbers)])

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how often each value was seen; the rarest of many together."""
        return {name: _most_common(counts) for name, counts in self._counts.items()}

    def numbers(self) -> dict[str, Numbers]:
        """Return the numbers of each column."""
        return {name: np.concatenate(parts) for name, parts in self._numbers.items()}


def _most_common(counts: Counter[str]) -> dict[str, int]:
    kept = dict(counts.most_common(MAX_VALUES))
    rest = counts.total() - sum(kept.values())
    return {**kept, "others": kept.get("others", 0) + rest} if rest else kept


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type) if is_list else column


def _as_numbers(column: pa.ChunkedArray) -> Numbers:
    values: Numbers = column.drop_null().cast(pa.float64()).to_numpy()
    return values
