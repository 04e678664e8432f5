"""Retries of outputs in buckets: what a local output becomes, whatever of the steps was the last."""

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import OutputInUseError
from gptj_batch.records.beside import begin_beside, beside, change_places, settle
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.part_reader import arrow_source, lines_of, source_of
from gptj_batch.records.progress import save_plan
from gptj_batch.records.publish import publish
from gptj_batch.records.retry import RetryFolder
from gptj_batch.records.retry_input import failed_rows_of_input
from gptj_batch.records.write import write_unit

from . import test_retry as local
from . import test_retry_input as of_input
from .cut_store import MemoryBucket

BAD = {0, 5, 6, 14}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryBucket:
    return MemoryBucket(monkeypatch)


def uploaded(source: Path, name: str) -> OutputFolder:
    """A local output's files in a bucket."""
    folder = OutputFolder.at(f"s3://memory/{name}/out")
    for file in source.rglob("*"):
        if file.is_file():
            folder.store.write(folder.root / file.relative_to(source).as_posix(), file.read_bytes())
    return folder


def do(retry: RetryFolder, answer: Any, bad: set[int]) -> None:
    """Do the rows that were taken out, as a run would."""
    rows, output = OutputFolder.at(retry.rows), OutputFolder.at(retry.output)
    names = rows.store.names(rows.root)
    table = pa.concat_tables(pq.read_table(source_of(rows.root / name), partitioning=None) for name in names)
    for name, values in answer(table.column("id").to_pylist(), bad, "word").items():
        table = table.append_column(name, values)
    with output.whole_file(output.root / "part-00000.parquet") as staged:
        pq.write_table(table, staged)


def answers(ids: list[int], bad: set[int], word: str) -> dict[str, pa.Array]:
    return {
        "label": pa.array([None if row in bad else f"again {row}" for row in ids], pa.string()),
        "scores": pa.array([None if row in bad else [("b", 1.0)] for row in ids], local.LABELS),
        "error": pa.array([f"still {row}" if row in bad else None for row in ids], pa.string()),
    }


def parts(folder: OutputFolder) -> dict[str, Any]:
    """Every part that a reader finds: a table, or its lines."""
    found: dict[str, Any] = {}
    for part in folder.parts():
        ending = "".join(part.suffixes)
        if ending == ".parquet":
            rows: Any = pq.read_table(source_of(part), partitioning=None)
        elif ending == ".arrow":
            rows = pa.ipc.open_file(arrow_source(part)).read_all()
        else:
            rows = list(lines_of(part, ending))
        found[part.relative_to(folder.root).as_posix()] = rows
    return found


def steps(folder: OutputFolder) -> None:
    retry = RetryFolder(folder.root)
    if not retry.is_open and not retry.take_out(local.ADDED, "error", local.keys):
        return
    if not OutputFolder.at(retry.output).parts():
        do(retry, answers, {6})
    retry.put_back(local.ADDED, local.FORM, local.nothing)
    retry.remove()


def test_a_retry_killed_before_any_change_leaves_every_row_once_and_is_finished_by_the_next(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    source = local.output(tmp_path / "source", BAD, 2)
    here = RetryFolder(local.output(tmp_path / "here", BAD, 2))
    before = parts(OutputFolder.at(source))
    here.take_out(local.ADDED, "error", local.keys)
    do(here, answers, {6})
    here.put_back(local.ADDED, local.FORM, local.nothing)
    wanted, kills = parts(OutputFolder.at(tmp_path / "here")), 0
    assert wanted != before
    for number in itertools.count(1):
        there = uploaded(source, str(number))
        was_killed = bucket.killed_before_change(number, lambda there=there: steps(there))
        for name, rows in parts(there).items():
            assert rows in (before[name], wanted[name]), "the old one or the new one, whole"
        assert parts(there).keys() == before.keys()
        if not was_killed:
            break
        kills += 1
        steps(there)
        assert parts(there) == wanted
        assert there.store.names(there.root) == ["_SUCCESS", *wanted], "and nothing of the retry is left"
    assert kills > 8


@pytest.mark.parametrize("form", of_input.FORMS.values(), ids=of_input.FORMS)
def test_parts_of_every_form_become_what_they_become_locally(
    tmp_path: Path, bucket: MemoryBucket, form: PartForm
) -> None:
    plan = of_input.write_input(tmp_path / "in")
    here = OutputFolder.at(of_input.made(tmp_path / "out", plan, form))
    there = uploaded(tmp_path / "out", "forms")
    for folder in (here, there):
        rows = failed_rows_of_input(folder.root, plan, None, form.partition_by, "g_error", of_input.keys)
        retry = RetryFolder(folder.root)
        assert retry.write_rows(rows) == retry.num_rows == len(of_input.BAD)
        do(retry, of_input.answers, {30})
        for _ in range(2):  # the second time after a crash before the end
            retry.put_back(of_input.ADDED, form, lambda: None)
        retry.remove()
    assert parts(there) == parts(here)


def test_a_part_that_takes_long_is_not_stored_once_the_output_is_anothers(tmp_path: Path, bucket: MemoryBucket) -> None:
    there = uploaded(local.output(tmp_path, {2, 7}, 2), "late")
    before, retry = parts(there), RetryFolder(there.root)
    retry.take_out(local.ADDED, "error", local.keys)
    do(retry, answers, set())
    asked: list[bool] = []

    def taken_in_the_meantime() -> None:
        asked.append(True)
        if len(asked) == 2:
            raise OutputInUseError("taken")

    with pytest.raises(OutputInUseError):
        retry.put_back(local.ADDED, local.FORM, taken_in_the_meantime)
    assert parts(there) == before


def test_what_a_retry_of_an_overwritten_output_left_is_forgotten(tmp_path: Path, bucket: MemoryBucket) -> None:
    for number in itertools.count(1):
        there = uploaded(local.output(tmp_path / str(number), {2}, 2), f"overwritten/{number}")
        save_plan(there.root, {"value": "old"})
        RetryFolder(there.root).take_out(local.ADDED, "error", local.keys)
        begin_beside(there.root)
        new = beside(there.root)
        save_plan(new, {"value": "new"})
        write_unit(pa.table({"id": [1]}), new, 0)
        publish(new, 1, local.FORM)
        old = there.store.read(there.success)
        was_killed = bucket.killed_before_change(number, lambda there=there: change_places(there.root))
        if there.store.read(there.success) == old:
            assert RetryFolder(there.root).is_open, "it is the old output still"
            change_places(there.root)
        settle(there.root)
        assert not RetryFolder(there.root).is_open and not there.store.is_folder(there.retry)
        if not was_killed:
            return
