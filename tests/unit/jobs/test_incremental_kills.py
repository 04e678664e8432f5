"""Incremental runs that are killed at any change to the disk, and the runs that follow."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from unit.records.crash import killed_before_change
from whole_runs import Spine, job

from jobs.run import run_job
from pipelines.config import Job
from pipelines.ledger import read_ledger

STEP = 3  # every change would take a minute; which are looked at differs from file to file of a run


def write(folder: Path, name: str, rows: int) -> None:
    file = folder / "in" / name
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": [f"{name} {row} of {rows}" for row in range(rows)]}), file)


def counts(made: Job) -> Counter[str]:
    table = ds.dataset(made.output.path, format="parquet", partitioning="hive").to_table()
    return Counter(table.column("text").to_pylist())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["partition", "append"])
def test_whenever_a_run_is_killed_the_next_one_leaves_every_row_once(
    tmp_path: Path, model_folder: Path, spine: Spine, mode: str
) -> None:
    write(tmp_path, "a.parquet", 3), write(tmp_path, "b.parquet", 4)
    first = job(tmp_path, model_folder, input={"incremental": True}, output={"incremental": mode})
    assert run_job(first) == 0
    write(tmp_path, "b.parquet", 5), write(tmp_path, "c.parquet", 33)
    expected = Counter(
        f"{name} {row} of {rows}"
        for name, rows in (("a.parquet", 3), ("b.parquet", 5), ("c.parquet", 33))
        for row in range(rows)
    )
    number, was_killed, kills = 1, True, 0
    while was_killed:
        # Each run goes on with what the one that was killed before it left, and gets a little farther.
        was_killed = killed_before_change(number, lambda: run_job(first))
        number, kills = number + STEP, kills + was_killed
        assert counts(first)["a.parquet 0 of 3"] == 1, "what was there stays there"
    assert kills > 3
    assert run_job(first) == 0
    assert counts(first) == expected
    assert [len(entry.files) for entry in read_ledger(first.output.path).entries] == [2, 2]
