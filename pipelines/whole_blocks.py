"""The one place where Ray Data is told how to run a stage, so that a unit stays one block from end to end.

Why it is not plain `map_batches` (Ray 2.60, all seen by running it; tests/integration/test_whole_blocks.py holds it):
`map_batches(num_gpus=...)` demands a batch size and then joins small blocks up to it, so units get mixed;
`map_batches_internal` is the same without that check. Ray cuts a stage's output above `target_max_block_size`; None
turns that off. One actor serves several tables at once only with true multi-threading.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from gptj_batch.stages.resources import CPU_STAGE_CPUS, ReplicaPlan

Stage = Callable[[pa.Table], pa.Table]
_NUMBER_SCHEMA = pa.schema([("id", pa.int64())])
_NUMBER_BYTES = 8


class UnitNumbers(Datasource):
    """One block a unit, with the unit's place from 0 in the column `id`.

    Not `ray.data.range`: its tasks claim a whole CPU, which no stage behind them can share, so Ray would run them by
    themselves, in processes of their own.
    """

    def __init__(self, num_units: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._num_units = num_units

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all blocks."""
        return _NUMBER_BYTES * self._num_units

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Return one task a unit, whatever parallelism Ray would choose."""
        facts = BlockMetadata(num_rows=1, size_bytes=_NUMBER_BYTES, input_files=None, exec_stats=None)
        return [ReadTask(partial(_number, unit), facts, _NUMBER_SCHEMA) for unit in range(self._num_units)]


def _number(unit: int) -> list[pa.Table]:
    return [pa.table({"id": [unit]}, schema=_NUMBER_SCHEMA)]


def _read(num_units: int, at_once: int | None = None) -> Dataset:
    numbers: Dataset = ray.data.read_datasource(
        UnitNumbers(num_units), num_cpus=CPU_STAGE_CPUS, override_num_blocks=num_units, concurrency=at_once
    )
    return numbers


def unit_numbers(num_units: int, at_once: int | None = None) -> Dataset:
    """Return a dataset of one block a unit, holding its place from 0 in the column `id`; it is planned at once."""
    context = DataContext.get_current()
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    # A first table may wait for a model of many gigabytes to load, and a table of long generations for its end.
    context.execution_no_progress_timeout_s = -1
    return _read(num_units, at_once)


def unit_numbers_in_order(num_units: int) -> Dataset:
    """Return the same for a notebook: rows keep their order, and the user's own settings of Ray Data stay."""
    with DataContext.current(DataContext.get_current().copy()):
        context = DataContext.get_current()
        context.target_max_block_size = None
        context.execution_no_progress_timeout_s = -1
        context.execution_options.preserve_order = True
        return _read(num_units)


def in_order(dataset: Dataset) -> Dataset:
    """Return a dataset whose rows keep their order, and that may wait for a model; the given one is not changed."""
    ordered = Dataset.copy(dataset, _deep_copy=True)
    ordered.context.execution_options.preserve_order = True
    ordered.context.execution_no_progress_timeout_s = -1
    return ordered


def streamed(dataset: Dataset, stage: Callable[[pa.Table], Iterator[pa.Table]]) -> Dataset:
    """Run a stage in tasks that gives a block's rows back in pieces."""

    def call(table: pa.Table) -> Iterator[pa.Table]:
        yield from stage(table)

    return dataset.map_batches_internal(call, batch_size=None, batch_format="pyarrow", num_cpus=CPU_STAGE_CPUS)


def on_cpu(dataset: Dataset, stage: Stage, at_once: int | None = None) -> Dataset:
    """Run a stage in tasks, at most `at_once` of them at a time; neighbouring ones with the same limit Ray fuses."""

    def call(table: pa.Table) -> pa.Table:
        return stage(table)

    return dataset.map_batches_internal(
        call, batch_size=None, batch_format="pyarrow", num_cpus=CPU_STAGE_CPUS, concurrency=at_once
    )


def on_replicas(
    dataset: Dataset,
    stage: type[Any],
    arguments: tuple[Any, ...],
    replicas: ReplicaPlan,
    tables_at_once: int,
    num_units: int,
) -> Dataset:
    """Run a stage in a pool of actors, each with `tables_at_once` tables in hand and as many waiting beside it.

    None is started for which there is no unit. None is given more than its share of them: Ray fills the first actor
    that is ready before the next one is. None is taken away while there is work: Ray would stop those that wait for a
    table, model and all.
    """
    num_replicas = max(replicas.min_replicas, min(replicas.initial_replicas, num_units))
    share = max(1, -(-num_units // num_replicas))
    in_hand = min(tables_at_once, share)
    pool = ActorPoolStrategy(
        min_size=num_replicas,
        max_size=max(num_replicas, min(replicas.max_replicas, num_units)),
        initial_size=num_replicas,
        max_tasks_in_flight_per_actor=min(2 * in_hand, share),
        max_concurrent_calls_per_actor=in_hand,
        enable_true_multi_threading=True,
    )
    return dataset.map_batches_internal(
        stage,
        fn_constructor_args=arguments,
        compute=pool,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=replicas.num_cpus,
        num_gpus=replicas.num_gpus or None,
    )
