import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gptj_batch.stages.resources import ReplicaPlan
from integration.probes import Describe, MakeRows, Replica
from pipelines.whole_blocks import on_cpu, on_replicas, unit_numbers

pytestmark = [pytest.mark.timeout(600), pytest.mark.extended]

# Units of every size, the smallest and the largest among them, in no order.
SIZES = [1, 500, 2, 499, *random.Random(0).choices(range(1, 501), k=36)]
MIB = 1 << 20


def replica_plan(num_replicas: int, num_gpus: float = 0, num_cpus: float = 0.5) -> ReplicaPlan:
    return ReplicaPlan(
        min_replicas=1,
        max_replicas=num_replicas,
        initial_replicas=num_replicas,
        num_gpus=num_gpus,
        num_cpus=num_cpus,
        num_threads=1,
    )


def passed_through(
    sizes: Sequence[int],
    plan: ReplicaPlan,
    tables_at_once: int = 2,
    row_bytes: int = 8,
    meeting: int = 1,
    gathering: tuple[str, int] | None = None,
) -> list[Mapping[str, Any]]:
    """Send units through the adapter's three kinds of stages, and return what the last one saw, table by table."""
    made = on_cpu(unit_numbers(len(sizes)), MakeRows(list(sizes), row_bytes))
    replicated = on_replicas(made, Replica, (meeting, gathering), plan, tables_at_once, len(sizes))
    tables = on_cpu(replicated, Describe()).iter_batches(batch_size=None, batch_format="pyarrow")
    return [row for table in tables for row in table.to_pylist()]


def assert_whole(seen: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> None:
    by_unit = sorted(seen, key=lambda row: row["units"])
    assert [row["units"] for row in by_unit] == [[unit] for unit in range(len(sizes))]
    assert [row["rows"] for row in by_unit] == [list(range(size)) for size in sizes]


@pytest.mark.usefixtures("on_one_node")
def test_units_of_every_size_stay_whole_in_a_pool_of_cpu_replicas() -> None:
    assert_whole(passed_through(SIZES, replica_plan(2)), SIZES)


@pytest.mark.usefixtures("on_one_node")
def test_several_tables_are_inside_one_replica_at_once() -> None:
    # None of them leaves before three are inside; with fewer at a time this would end in a BrokenBarrierError.
    seen = passed_through([5] * 12, replica_plan(1), tables_at_once=3, meeting=3)
    assert_whole(seen, [5] * 12)
    assert len({row["pid"] for row in seen}) == 1


@pytest.mark.usefixtures("on_one_node")
def test_a_unit_above_the_size_at_which_ray_cuts_blocks_stays_whole() -> None:
    sizes = [3, 28, 1]
    seen = passed_through(sizes, replica_plan(1), row_bytes=8 * MIB)
    assert_whole(seen, sizes)
    # Ray cuts above one and a half times its 128 MiB.
    assert max(row["num_bytes"] for row in seen) > 200 * MIB


@pytest.mark.usefixtures("on_one_node")
def test_metadata_of_tables_and_fields_survives() -> None:
    seen = passed_through([3, 4], replica_plan(1))
    assert sorted(row["metadata"] for row in seen) == ["table 0", "table 1"]
    assert {row["field_metadata"] for row in seen} == {"b'field'"}


@pytest.mark.usefixtures("on_gpu_nodes")
def test_units_stay_whole_with_gpus(tmp_path: Path) -> None:
    plan = replica_plan(4, num_gpus=1)
    seen = passed_through(SIZES, plan, tables_at_once=4, gathering=(str(tmp_path), 4))
    assert_whole(seen, SIZES)
    assert len({row["pid"] for row in seen}) == 4
    assert len({row["node"] for row in seen}) == 2


@pytest.mark.usefixtures("on_gpu_nodes")
def test_several_tables_are_inside_a_replica_with_a_gpu_at_once() -> None:
    seen = passed_through([7] * 8, replica_plan(1, num_gpus=1), tables_at_once=4, meeting=4)
    assert_whole(seen, [7] * 8)
