from collections.abc import Callable
from dataclasses import replace

import pytest

from pipelines.build import MAX_TABLES, MIN_TABLES, ROWS_AT_ONCE, tables_at_once
from pipelines.config import Job
from pipelines.prepare import prepare

MakeJob = Callable[..., Job]


@pytest.mark.parametrize("rows_per_unit", [1, 32, 33, 100, 256, 257, 512, 10_000])
def test_a_replica_has_enough_rows_in_hand_and_never_a_single_table(make_job: MakeJob, rows_per_unit: int) -> None:
    run = prepare(make_job())
    run = replace(run, plan=replace(run.plan, max_rows_per_unit=rows_per_unit))
    tables = tables_at_once(run)
    assert MIN_TABLES <= tables <= MAX_TABLES
    assert tables * rows_per_unit >= ROWS_AT_ONCE or tables == MAX_TABLES
