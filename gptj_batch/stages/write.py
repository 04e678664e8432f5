"""The last stage: a finished unit in, its file on disk and one small row of counts out."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gptj_batch.errors import OutputError
from gptj_batch.records.lease import Fence
from gptj_batch.records.read import UnitPlan
from gptj_batch.records.write import write_unit
from gptj_batch.stages.columns import (
    BACKEND_FACTS,
    IS_DUPLICATE,
    NUM_DROPPED_TOKENS,
    NUM_GENERATED_TOKENS,
    NUM_PROMPT_TOKENS,
    UNIT,
    without_internal,
)

COUNTS = pa.schema(
    [
        ("unit", pa.int64()),
        ("rows", pa.int64()),
        ("failed", pa.int64()),
        ("truncated", pa.int64()),
        ("duplicates", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("generated_tokens", pa.int64()),
        ("backend", pa.string()),
    ]
)


class WriteStage:
    """Write whole units atomically; writing one again replaces it."""

    def __init__(
        self,
        plan: UnitPlan,
        output: str,
        error_column: str,
        lineage: Mapping[str, Any],
        fence: Fence | None = None,
    ) -> None:
        self._plan = plan
        self._output = output
        self._error_column = error_column
        self._lineage = dict(lineage)
        self._fence = fence

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write the unit and return its counts (`COUNTS`)."""
        unit = self._plan.unit(_only(table, UNIT)) if table.num_rows else self._plan.unit(0)
        if table.num_rows != unit.num_rows:
            # Only a bug, or blocks that Ray joined or cut, can lead here; writing would lose or double rows.
            raise OutputError(
                f"{unit.title} came back with {table.num_rows} rows; nothing of it was written. This is a bug of "
                "gptj-batch, please report it"
            )
        metadata = dict(table.schema.metadata or {})
        backend = metadata.pop(BACKEND_FACTS, b"{}").decode()
        lineage = json.dumps({**self._lineage, "backend": json.loads(backend)}, sort_keys=True).encode()
        records = without_internal(table).replace_schema_metadata(metadata or None)
        if self._fence is not None:  # a worker that outlived its run must not write into the next one's output
            self._fence.check()
        write_unit(records, self._output, unit.index, metadata=lineage)
        counts = {"unit": unit.index, **counts_of(table, self._error_column), "backend": backend}
        return pa.Table.from_pylist([counts], schema=COUNTS)


def counts_of(table: pa.Table, error_column: str) -> dict[str, int]:
    """Return how many rows, failures, cut prompts and tokens are in a finished unit."""
    return {
        "rows": table.num_rows,
        "failed": table.num_rows - table.column(error_column).null_count,
        "truncated": int(pc.sum(pc.greater(table.column(NUM_DROPPED_TOKENS), 0)).as_py() or 0),
        "duplicates": int(pc.sum(table.column(IS_DUPLICATE)).as_py() or 0),
        "prompt_tokens": int(pc.sum(table.column(NUM_PROMPT_TOKENS)).as_py() or 0),
        "generated_tokens": int(pc.sum(table.column(NUM_GENERATED_TOKENS)).as_py() or 0),
    }


def _only(table: pa.Table, name: str) -> int:
    """Return the one value of a column. Several would be units that were joined."""
    values = table.column(name).unique().to_pylist()
    assert len(values) == 1, f"one block, one unit; got {values[:5]}"
    return int(values[0])
