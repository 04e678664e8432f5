"""What the added columns of a result hold: labels, lengths, scores, failures, and their rates. No record's text."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gptj_batch.errors import ConfigError
from gptj_batch.records.schema import name_list
from gptj_batch.tasks.base import ERROR_COLUMN
from pipelines.bar import Shown
from pipelines.prepare import Run
from pipelines.progress import Counts, duration
from pipelines.session import session
from pipelines.summary_page import summary_page
from pipelines.tables import callers_table

COUNTED = ("label", "finish_reason")
MEASURED = (
    "label_score", "value", "answer_score", "logprob_sum", "perplexity",
    "num_prompt_tokens", "num_generated_tokens", "num_scored_tokens",
)  # fmt: skip
LENGTHS = ("generated_text", "answer_text")
VECTOR = "embedding"
KNOWN = (*COUNTED, *MEASURED, *LENGTHS, VECTOR, ERROR_COLUMN)
MAX_REASONS = 10


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is known of a call besides its result."""

    function: str
    model: str
    prefix: str
    counts: Counts | None = None
    seconds: float = 0.0
    backend: dict[str, Any] = field(default_factory=dict)
    output: str | None = None

    @classmethod
    def of(cls, run: Run, shown: Shown | None = None, backend: dict[str, Any] | None = None) -> "Call":
        """Return the facts of a run; `shown` counted what was done at once."""
        from pipelines.arguments import is_written

        job = run.job
        return cls(
            function=job.task.kind,
            model=job.model.path,
            prefix=job.output.prefix,
            counts=None if shown is None else shown.counts,
            seconds=0.0 if shown is None else shown.seconds,
            backend=backend or {},
            output=job.output.path if is_written(job) else None,
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The spread of a column of numbers."""

    name: str
    least: float
    median: float
    mean: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """See the module. Shows itself as a table in a notebook, and as lines elsewhere."""

    rows: int
    failed: int
    errors: dict[str, int]
    counted: dict[str, dict[str, int]]
    measured: tuple[Measured, ...]
    facts: dict[str, str]

    @property
    def done(self) -> int:
        """Return how many rows have a result."""
        return self.rows - self.failed

    def __str__(self) -> str:
        lines = [f"{self.rows:,} rows: {self.done:,} done, {self.failed:,} failed"]
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        lines += [f"  {count:,} x {reason}" for reason, count in self.errors.items()]
        for name, values in self.counted.items():
            lines.append(f"{name}:")
            lines += [f"  {value}: {count:,} ({count / max(self.done, 1):.1%})" for value, count in values.items()]
        for one in self.measured:
            spread = (one.least, one.median, one.mean, one.most)
            lines.append(f"{one.name}: " + "{0:.4g} to {3:.4g}, median {1:.4g}, mean {2:.4g}".format(*spread))
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return summary_page(self)


def summarize(result: Any, prefix: str = "") -> Summary:
    """Return the summary of a result; see `pipelines.warm`."""
    call = session().call_of(result)
    prefix = prefix if call is None else call.prefix
    gathered = _Gathered()
    for table in _tables(result, prefix):
        gathered.add(table.rename_columns([name.removeprefix(prefix) for name in table.column_names]))
    return gathered.summary({} if call is None else _facts(call))


def _tables(result: Any, prefix: str) -> Iterator[pa.Table]:
    """Yield the known columns of a result. Raises ConfigError where it has none."""
    wanted = [prefix + name for name in KNOWN]
    if hasattr(result, "iter_batches") and hasattr(result, "select_columns"):
        names = _known(result.columns(), wanted)
        yield from result.select_columns(names).iter_batches(batch_size=None, batch_format="pyarrow")
    else:
        table = callers_table(result)
        yield table.arrow(_known(table.names, wanted))


def _known(names: list[str] | None, wanted: list[str]) -> list[str]:
    known = [name for name in wanted if name in (names or [])]
    if not known:
        raise ConfigError(
            "summary(): the data has none of the columns that a task adds, such as "
            f"{name_list(wanted[:1] + wanted[-1:])}; give the prefix of their names, if they have one"
        )
    return known


def _facts(call: Call) -> dict[str, str]:
    facts = {"function": call.function, "model": call.model}
    if call.backend:
        facts["backend"] = " ".join(
            str(call.backend[name]) for name in ("kind", "device", "dtype") if name in call.backend
        )
    if call.counts is not None and call.counts.rows:
        counts, seconds = call.counts, max(call.seconds, 1e-9)
        facts["time"] = f"{duration(seconds)}, start-up included"
        facts["tokens"] = f"{counts.prompt_tokens:,} of prompts, {counts.generated_tokens:,} generated"
        facts["throughput"] = f"{counts.rows / seconds:,.1f} rows/s, {counts.tokens / seconds:,.0f} tokens/s"
        if counts.truncated:
            facts["prompts cut"] = f"{counts.truncated:,}"
    if call.output is not None:
        facts["output"] = call.output
    return facts


class _Gathered:
    """What was seen of the columns so far."""

    def __init__(self) -> None:
        self._rows = self._failed = 0
        self._errors: Counter[str] = Counter()
        self._counted: dict[str, Counter[str]] = {}
        self._measured: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, table: pa.Table) -> None:
        """Take some rows."""
        self._rows += table.num_rows
        columns = dict(zip(table.column_names, table.columns, strict=True))
        errors = columns.pop(ERROR_COLUMN, pa.chunked_array([pa.nulls(table.num_rows, pa.string())]))
        self._failed += table.num_rows - errors.null_count
        self._errors.update(str(reason) for reason in errors.drop_null().to_pylist())
        is_done = pc.is_null(errors)
        for name, column in columns.items():
            self._take(name, column.filter(is_done))

    def _take(self, name: str, column: pa.ChunkedArray) -> None:
        if name in COUNTED:
            self._counted.setdefault(name, Counter()).update(_values(name, column))
        elif name in MEASURED:
            self._numbers(name, column)
        elif name in LENGTHS:
            self._numbers(f"characters of {name}", pc.utf8_length(_flat(column)))
            if name == "answer_text":
                answered = {"answer": len(column) - column.null_count, "no answer": column.null_count}
                self._counted.setdefault("answers", Counter()).update(answered)
        elif name == VECTOR:
            self._numbers("numbers of embedding", pc.list_value_length(column))

    def _numbers(self, name: str, column: pa.ChunkedArray) -> None:
        values = _flat(column).drop_null().cast(pa.float64())
        self._measured.setdefault(name, []).append(values.to_numpy())

    def summary(self, facts: dict[str, str]) -> Summary:
        """Return the whole."""
        joined = {name: np.concatenate(parts) for name, parts in self._measured.items()}
        return Summary(
            rows=self._rows,
            failed=self._failed,
            errors=dict(self._errors.most_common(MAX_REASONS)),
            counted={name: dict(counts.most_common()) for name, counts in self._counted.items()},
            measured=tuple(_spread(name, values) for name, values in joined.items() if len(values)),
            facts=facts,
        )


def _spread(name: str, values: NDArray[np.float64]) -> Measured:
    return Measured(
        name=name,
        least=float(values.min()),
        median=float(np.median(values)),
        mean=float(values.mean()),
        most=float(values.max()),
    )


def _values(name: str, column: pa.ChunkedArray) -> Iterator[str]:
    """Yield what is counted: each label of a row's list; a row without one counts as such."""
    for value in column.to_pylist():
        if value is None or value == []:
            yield f"no {name}"
        else:
            yield from value if isinstance(value, list) else (str(value),)


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values of a column of lists one after another; another column as it is."""
    kind = column.type
    return pc.list_flatten(column) if pa.types.is_list(kind) or pa.types.is_large_list(kind) else column
