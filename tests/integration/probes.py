"""Stages that note where they ran and which units they saw, instead of doing any work."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import ray

WAIT_S = 120.0
# Workers cannot import the tests: the classes travel to them whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class MakeRows:
    """The number of a unit in, a table of that unit's size out, with metadata that should arrive."""

    def __init__(self, sizes: list[int], row_bytes: int = 8) -> None:
        self._sizes = sizes
        self._row_bytes = row_bytes

    def __call__(self, table: pa.Table) -> pa.Table:
        (unit,) = table.column("id").to_pylist()
        size = self._sizes[unit]
        payload = pa.array([np.random.default_rng(row).bytes(self._row_bytes) for row in range(size)], pa.binary())
        columns = [pa.array([unit] * size, pa.int64()), pa.array(range(size), pa.int64()), payload]
        fields = [pa.field("unit", pa.int64(), metadata={"of": "field"}), pa.field("row", pa.int64())]
        schema = pa.schema([*fields, pa.field("payload", pa.binary())], metadata={"of": f"table {unit}"})
        return pa.table(columns, schema=schema)


class Replica:
    """Pass tables on with a note of who had them.

    meeting: tables that must be inside at the same time before any of them leaves
    gathering: a folder, and how many replicas must have a table at the same time before any of them lets it go
    """

    def __init__(self, meeting: int = 1, gathering: tuple[str, int] | None = None) -> None:
        self._barrier = threading.Barrier(meeting, timeout=WAIT_S)
        self._gathering = gathering

    def __call__(self, table: pa.Table) -> pa.Table:
        self._barrier.wait()
        if self._gathering is not None:
            self._gather(Path(self._gathering[0]), self._gathering[1])
        gpus = ",".join(str(gpu) for gpu in ray.get_gpu_ids())
        metadata = {
            **(table.schema.metadata or {}),
            "pid": str(os.getpid()),
            "node": ray.get_runtime_context().get_node_id(),
            "gpus": gpus,
        }
        return table.replace_schema_metadata(metadata)

    def _gather(self, folder: Path, number: int) -> None:
        (folder / str(os.getpid())).touch()
        until = time.monotonic() + WAIT_S
        while len(list(folder.iterdir())) < number:
            if time.monotonic() > until:
                raise TimeoutError(f"of {number} replicas {len(list(folder.iterdir()))} came")
            time.sleep(0.05)


class Deadly:
    """Kill the own process at a row of a unit, leaving a file in `ends`; what is left out gets its error."""

    def __init__(self, unit: int, row: int, ends: str) -> None:
        self._bad = {"unit": unit, "row": row}
        self._ends = ends

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._bad in table.select(["unit", "row"]).to_pylist():
            (Path(self._ends) / uuid4().hex).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.leave_out(table, "")

    def leave_out(self, table: pa.Table, error: str) -> pa.Table:
        return table.append_column("error", pa.array([error] * table.num_rows, pa.string()))


class Describe:
    """A table in, one row about it out."""

    def __call__(self, table: pa.Table) -> pa.Table:
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        row = {
            "units": sorted(set(table.column("unit").to_pylist())),
            "rows": table.column("row").to_pylist(),
            "num_bytes": table.nbytes,
            "metadata": str(metadata.get("of")),
            "field_metadata": str((table.schema.field("unit").metadata or {}).get(b"of")),
            "pid": metadata["pid"],
            "node": metadata["node"],
            "gpus": metadata["gpus"],
        }
        return pa.Table.from_pylist([row])
