"""Incremental runs whose output is in a bucket: what a local output has, whatever of the steps was the last."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from unit.records.cut_store import MemoryBucket
from unit.records.s3_endpoint import Endpoint, Fault
from whole_runs import OUT, Spine, job

from gptj_batch.errors import BackendError, ConfigError, OutputError, OutputInUseError
from gptj_batch.records.lease import take_lease
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_reader import read_column
from jobs.cli import main
from jobs.run import run_job
from pipelines.config import Job
from pipelines.ledger import read_ledger

STEP = 3  # every change would take a minute
in_both_modes = pytest.mark.parametrize("mode", ["partition", pytest.param("append", marks=pytest.mark.extended)])


def write(folder: Path, name: str, rows: int) -> None:
    file = folder / "in" / name
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": [f"{name} {row} of {rows}" for row in range(rows)]}), file)


def nightly(folder: Path, model_folder: Path, mode: str, output: str = OUT, **blocks: Any) -> Job:
    where = {"incremental": mode, "path": output}
    return job(folder, model_folder, **{"input": {"incremental": True}, "output": where, **blocks})


def shown() -> list[str]:
    """The parts that a reader finds who lists the output, without names that begin with "_"."""
    folder = OutputFolder.at(OUT)
    folders = folder.store.walk(folder.root, lambda name: "=" in name)
    names = [(where / name).relative_to(folder.root) for where, names in folders for name in names]
    return [name.as_posix() for name in names if name.name.startswith("part-")]


def counts() -> Counter[str]:
    folder = OutputFolder.at(OUT)
    return Counter(text for part in shown() for text in read_column(folder, folder.root / part, "text").to_pylist())


def expected(**files: int) -> Counter[str]:
    return Counter(f"{name}.parquet {row} of {rows}" for name, rows in files.items() for row in range(rows))


@in_both_modes
def test_nights_give_what_they_give_locally(
    tmp_path: Path, model_folder: Path, spine: Spine, bucket: MemoryBucket, mode: str
) -> None:
    there, here = (nightly(tmp_path, model_folder, mode, output) for output in (OUT, str(tmp_path / "out")))
    for files in ({"a": 3, "b": 4}, {"c": 33}, {}, {"b": 5}):
        for name, rows in files.items():
            write(tmp_path, f"{name}.parquet", rows)
        assert run_job(there) == run_job(here) == 0
    assert run_job(there, rescore="all") == run_job(here, rescore="all") == 0
    local = ds.dataset(tmp_path / "out", format="parquet", partitioning="hive").to_table()
    assert counts() == expected(a=3, b=5, c=33) == Counter(local.column("text").to_pylist())
    entries = [read_ledger(each).entries for each in (OUT, tmp_path / "out")]
    assert [(each.rows, len(each.files), len(each.replaced), len(each.parts)) for each in entries[0]] == [
        (each.rows, len(each.files), len(each.replaced), len(each.parts)) for each in entries[1]
    ]
    assert sorted(part for file in read_ledger(OUT).files.values() for part in file.parts) == sorted(shown())
    assert main(["report", OUT]) == 0
    if mode == "partition":
        assert main(["verify", f"{OUT}/run={entries[0][-1].run}"]) == 0


@pytest.mark.timeout(600)
@in_both_modes
def test_whenever_a_run_is_killed_the_next_one_leaves_every_row_once(
    tmp_path: Path, model_folder: Path, spine: Spine, bucket: MemoryBucket, mode: str
) -> None:
    write(tmp_path, "a.parquet", 3), write(tmp_path, "b.parquet", 4)
    made = nightly(tmp_path, model_folder, mode)
    assert run_job(made) == 0
    write(tmp_path, "b.parquet", 5), write(tmp_path, "c.parquet", 33)
    number, was_killed, kills = 1, True, 0
    while was_killed:
        # Each run goes on with what the one that was killed before it left, and gets a little farther.
        was_killed = bucket.killed_before_change(number, lambda: run_job(made))
        give_back_lease()
        number, kills = number + STEP, kills + was_killed
        assert counts()["a.parquet 0 of 3"] == 1, "what was there stays there"
        assert all(is_whole(part) for part in shown() if mode == "partition")
    assert kills > 3
    assert run_job(made) == 0
    assert counts() == expected(a=3, b=5, c=33)
    assert [len(entry.files) for entry in read_ledger(OUT).entries] == [2, 2]
    left = OutputFolder.at(OUT)
    if mode == "partition":
        assert not left.store.is_folder(left.private / "runs")


def give_back_lease() -> None:
    """Remove what a killed process would have left, too, but which is this one's here, and so alive."""
    folder = OutputFolder.at(OUT)
    for where, names in folder.store.walk(folder.private, lambda _: True):
        folder.store.remove_files([where / name for name in names if name.startswith("lease-")])
    runs = folder.private / "runs"
    for run in folder.store.names(runs) if folder.store.is_folder(runs) else []:
        private = runs / run / "_gptj_batch"
        names = folder.store.names(private) if folder.store.is_folder(private) else []
        folder.store.remove_files([private / name for name in names if name.startswith("lease-")])


def is_whole(part: str) -> bool:
    """Tell whether a part's partition has its `_SUCCESS`, or its run is the last one, which is being placed."""
    folder, name = OutputFolder.at(OUT), part.partition("/")[0]
    last = read_ledger(OUT).last
    return folder.store.exists(folder.root / name / "_SUCCESS") or (last is not None and name == f"run={last.run}")


@in_both_modes
def test_an_interrupted_run_is_gone_on_with_and_nobody_sees_it_before(
    tmp_path: Path, model_folder: Path, spine: Spine, bucket: MemoryBucket, mode: str
) -> None:
    write(tmp_path, "a.parquet", 100)
    made = nightly(tmp_path, model_folder, mode)
    spine.units_before_end = 3
    with pytest.raises(BackendError):
        run_job(made)
    assert not shown() and not read_ledger(OUT).entries
    spine.units_before_end = None
    write(tmp_path, "b.parquet", 7)
    assert run_job(made) == 0
    assert spine.num_units == 5 and counts() == expected(a=100, b=7)
    assert [entry.rows for entry in read_ledger(OUT).entries] == [100, 7]


def test_a_second_run_at_the_same_time_is_refused(
    tmp_path: Path, model_folder: Path, spine: Spine, bucket: MemoryBucket
) -> None:
    write(tmp_path, "a.parquet", 3)
    with take_lease(OUT), pytest.raises(OutputInUseError):
        run_job(nightly(tmp_path, model_folder, "append"))
    assert run_job(nightly(tmp_path, model_folder, "append")) == 0


def test_nothing_to_do_ends_as_the_last_run_and_other_settings_ask(
    tmp_path: Path, model_folder: Path, spine: Spine, bucket: MemoryBucket, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a 1", None]}), tmp_path / "in" / "a.parquet")
    made = nightly(tmp_path, model_folder, "partition")
    assert run_job(made) == 3 and run_job(made) == 3
    assert "Nothing to do" in capsys.readouterr().err
    other = nightly(tmp_path, model_folder, "partition", task={"prompt": "Is it {{ text }}"})
    with pytest.raises(ConfigError, match="--rescore new"):
        run_job(other)
    assert run_job(other, rescore="new") == 0
    with pytest.raises(ConfigError, match="is kept by incremental runs"):
        run_job(nightly(tmp_path, model_folder, "partition", input={"incremental": False}))


def test_an_interrupted_rescoring_is_not_forgotten_where_the_bucket_refuses_for_a_while(
    tmp_path: Path, model_folder: Path, spine: Spine, bucket: MemoryBucket, endpoint: Endpoint
) -> None:
    write(tmp_path, "a.parquet", 100)
    assert run_job(nightly(tmp_path, model_folder, "append")) == 0
    other = nightly(tmp_path, model_folder, "append", task={"prompt": "Is it {{ text }}"})
    spine.units_before_end = 2
    with pytest.raises(BackendError):
        run_job(other, rescore="all")
    spine.units_before_end = None
    with (
        endpoint.with_faults(Fault("GET", "status", "todo.json", status=403)),
        pytest.raises(OutputError, match="todo"),
    ):
        run_job(other)
    assert run_job(other) == 0
    assert spine.num_units == 8 and counts() == expected(a=100)
