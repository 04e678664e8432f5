"""Jobs whose stages run in this process, one table after the other, where Ray Data would run them in its own.

All else is as on a cluster: `pipelines.build` puts the same stages together, they are pickled and taken up again, and
between two of them tables are Arrow's bytes. What it saves is the start of processes, which is most of a short run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyarrow as pa
import pytest
from ray import cloudpickle

import jobs.run
import pipelines.build

Stage = Callable[[pa.Table], pa.Table]
CPUS = 2.0


class WithoutRay:
    """Whether the test that runs now, and the fixtures that it is the first to ask for, leave Ray out."""

    now = False


class Tables:
    """What Ray's Dataset is to a run: an input, and stages that it has not gone through yet."""

    def __init__(self, units: int, stages: tuple[Callable[[], Stage], ...] = ()) -> None:
        self._units = units
        self._stages = stages

    def then(self, start: Callable[[], Stage]) -> "Tables":
        """Return the same tables, with a stage more; `start` is called once, when the first table is on its way."""
        return Tables(self._units, (*self._stages, start))

    def iter_batches(self, batch_size: None, batch_format: str) -> Iterator[pa.Table]:
        """Yield each table when it is through all stages."""
        assert batch_size is None and batch_format == "pyarrow"
        stages = [start() for start in self._stages]
        for unit in range(self._units):
            table = pa.table({"id": pa.array([unit], pa.int64())})
            for stage in stages:
                table = through_bytes(stage(table))
            yield table


def through_bytes(table: pa.Table) -> pa.Table:
    """Return a table as another process would get it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def on_cpu(tables: Tables, stage: Stage, *_: object) -> Tables:
    pickled = cloudpickle.dumps(stage)
    return tables.then(lambda: cloudpickle.loads(pickled))


def on_replicas(tables: Tables, stage: Callable[..., Stage], arguments: tuple[Any, ...], *_: object) -> Tables:
    pickled = cloudpickle.dumps(arguments)
    return tables.then(lambda: stage(*cloudpickle.loads(pickled)))


@contextmanager
def stages_here() -> Iterator[None]:
    """Let jobs in this process run their stages in it, as on a machine of two CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.run, "connected", lambda address: nullcontext())
        patch.setattr(jobs.run, "head_address", lambda: "nowhere")
        patch.setattr(jobs.run, "raylet_process", lambda: None)
        patch.setattr(jobs.run, "node_resources", lambda: [{"CPU": CPUS}])
        patch.setattr(jobs.run, "free_resources", lambda: {"CPU": CPUS})
        patch.setattr(pipelines.build, "unit_numbers", lambda num_units, *_: Tables(num_units))
        patch.setattr(pipelines.build, "on_cpu", on_cpu)
        patch.setattr(pipelines.build, "on_replicas", on_replicas)
        yield
