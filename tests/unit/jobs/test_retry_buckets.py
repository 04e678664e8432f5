"""Retries of outputs in buckets, whole: what they become locally, whatever of the steps was the last."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from unit.records.cut_store import MemoryBucket
from unit.records.s3_endpoint import Endpoint, Fault
from whole_runs import BUCKET, OUT, Spine, job

from gptj_batch.errors import BackendError, ConfigError, OutputError, OutputInUseError
from gptj_batch.records import bucket_exchange
from gptj_batch.records.bucket_store import BucketStore
from gptj_batch.records.lease import take_lease
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_reader import read_column, source_of
from gptj_batch.stages.columns import ERROR
from gptj_batch.stages.decode import DecodeStage
from jobs.cli import main
from jobs.retry import retry
from jobs.run import run_job
from pipelines.config import Job
from pipelines.ledger import read_ledger

STEP = 4  # every change would take a minute
TEXTS = {"a": 40, "b": 9}
BAD = ("a 0", "a 33", "a 39", "b 8")


class Trouble:
    """While it is there, some rows fail."""

    is_there = True


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Trouble:
    trouble, decode = Trouble(), DecodeStage.__call__

    def decode_all(self: DecodeStage, table: pa.Table) -> pa.Table:
        is_bad = [trouble.is_there and text in BAD for text in table.column("text").to_pylist()]
        place = table.schema.get_field_index(ERROR)
        errors = pa.array(["short of memory" if bad else None for bad in is_bad], pa.string())
        return decode(self, table.set_column(place, table.schema.field(place), errors))

    monkeypatch.setattr(DecodeStage, "__call__", decode_all)
    return trouble


@pytest.fixture
def failed(tmp_path: Path, model_folder: Path, spine: Spine, bucket: MemoryBucket, trouble: Trouble) -> Job:
    """A finished run in the bucket, and the same one locally, in both of which some rows failed."""
    write_input(tmp_path)
    for output in (OUT, str(tmp_path / "out")):
        assert run_job(made(tmp_path, model_folder, output)) == 3
    trouble.is_there = False
    return made(tmp_path, model_folder, OUT)


def write_input(folder: Path) -> None:
    (folder / "in").mkdir()
    for name, rows in TEXTS.items():
        pq.write_table(pa.table({"text": [f"{name} {row}" for row in range(rows)]}), folder / "in" / f"{name}.parquet")


def made(folder: Path, model_folder: Path, path: str, **blocks: dict[str, Any]) -> Job:
    return job(folder, model_folder, **{**blocks, "output": {"path": path, **blocks.get("output", {})}})


def tables(output: str | Path) -> dict[str, pa.Table]:
    folder = OutputFolder.at(output)
    return {part.name: pq.read_table(source_of(part), partitioning=None) for part in folder.parts()}


def report(output: str | Path) -> dict[str, Any]:
    folder = OutputFolder.at(output)
    facts: dict[str, Any] = json.loads(folder.store.read(folder.private / "run.json"))
    return facts


def errors(output: str | Path) -> Counter[str]:
    """The texts of the rows that failed."""
    folder, found = OutputFolder.at(output), Counter[str]()
    for part in folder.parts():
        texts, of_rows = (read_column(folder, part, name).to_pylist() for name in ("text", "error"))
        found.update(text for text, error in zip(texts, of_rows, strict=True) if error is not None)
    return found


def texts(output: str | Path) -> Counter[str]:
    folder = OutputFolder.at(output)
    return Counter(text for part in folder.parts() for text in read_column(folder, part, "text").to_pylist())


def end_leases(output: str) -> None:
    """Remove the leases that a killed process would have left, too, but which are this one's here, and so alive."""
    folder, store = OutputFolder.at(output), BucketStore.of(BUCKET)
    keys = [key for key in store._keys(folder.root.key, None) if key.rpartition("/")[2].startswith("lease-")]
    store.remove_files(folder.root / key for key in keys)


def test_a_retry_gives_what_it_gives_locally(tmp_path: Path, failed: Job, capsys: pytest.CaptureFixture[str]) -> None:
    local, names = tmp_path / "out", [OutputFolder.at(OUT).store.names(OutputFolder.at(OUT).private)]
    assert errors(OUT) == errors(local) == Counter(BAD)
    assert [retry(OUT), retry(str(local))] == [0, 0]
    said = capsys.readouterr()
    assert "49 rows: 49 done, 0 failed; 4 in this run" in said.out
    assert f"doing 4 failed rows of {OUT} again" in said.err
    assert tables(OUT) == tables(local) and not errors(OUT)
    reports = [{name: report(each)[name] for name in ("rows", "done", "failed", "errors")} for each in (OUT, local)]
    assert reports[0] == reports[1]
    assert report(OUT)["output"] == OUT
    names.append(OutputFolder.at(OUT).store.names(OutputFolder.at(OUT).private))
    assert names[0] == names[1] and "retry" not in names[1]
    assert retry(OUT) == 0 and "Nothing to do: no row of" in capsys.readouterr().err
    assert main(["verify", OUT]) == 0


@pytest.mark.timeout(900)
def test_whenever_a_retry_is_killed_every_row_is_there_once_and_the_next_one_goes_on(
    tmp_path: Path, failed: Job, bucket: MemoryBucket
) -> None:
    assert retry(str(tmp_path / "out")) == 0
    wanted, folder, number = tables(tmp_path / "out"), OutputFolder.at(OUT), 1
    root, store = folder.root, BucketStore.of(BUCKET)
    before = {key: store.read(root / key) for key in store._keys(root.key, None)}
    while bucket.killed_before_change(number, lambda: retry(OUT)):
        end_leases(OUT)
        assert texts(OUT) == texts(tmp_path / "out") and set(errors(OUT)) <= set(BAD)
        assert retry(OUT) == 0
        assert tables(OUT) == wanted and not errors(OUT) and not store.is_folder(folder.retry)
        store.remove(root)
        for key, data in before.items():
            store.write(root / key, data)
        number += STEP
    assert number > 5 * STEP
    assert tables(OUT) == wanted


def test_a_retry_that_ended_in_the_middle_goes_on_and_does_not_begin_again(failed: Job, spine: Spine) -> None:
    before = spine.num_units
    spine.units_before_end = 0
    with pytest.raises(BackendError):
        retry(OUT)
    spine.units_before_end = None
    folder = OutputFolder.at(OUT)
    (rows,) = [folder.retry / "rows" / name for name in folder.store.names(folder.retry / "rows")]
    stored = folder.store.modified(rows)
    assert retry(OUT) == 0 and spine.num_units == before + 1
    assert not errors(OUT) and stored


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault("PUT", "status", "out/part-", status=403),
            r"part-00000\.parquet cannot be written: .*PUT of s3://runs/",
        ),
        (Fault("PUT", "status", "retry/rows", status=403), r"rows-00000000\.parquet cannot be written: .*PUT of s3://"),
        (Fault("GET", "status", "out/part-", status=403), "GET of .* Run the same command again when it can be"),
        (Fault("POST", "status", "delete", status=403), "DELETE of .* Allow it to the run's credentials"),
        (Fault("GET", "status", "begun.json", status=403), "begun.json cannot be read: .*GET of"),
    ],
    ids=["a part", "rows", "reading a part", "removing", "reading what was begun"],
)
def test_what_the_service_refuses_is_said_in_one_paragraph_and_made_up_for(
    failed: Job, endpoint: Endpoint, fault: Fault, said: str
) -> None:
    before = tables(OUT)
    with endpoint.with_faults(fault), pytest.raises(OutputError, match=said) as refused:
        retry(OUT)
    assert len(str(refused.value).splitlines()) == 1 and tables(OUT) == before
    assert retry(OUT) == 0 and not errors(OUT)


def test_two_at_once_and_what_cannot_be_done_again_are_refused(
    tmp_path: Path, model_folder: Path, failed: Job, trouble: Trouble
) -> None:
    with take_lease(OUT), pytest.raises(OutputInUseError):
        retry(OUT)
    with pytest.raises(ConfigError, match="is not an output of gptj-batch"):
        retry("s3://runs/team/elsewhere")
    trouble.is_there = True
    moving = made(tmp_path, model_folder, f"{OUT}/moving", output={"partition_by": ["label"]})
    assert run_job(moving) == 3
    with pytest.raises(ConfigError, match='has "label", which the task adds'):
        retry(f"{OUT}/moving")


def test_an_overwriting_that_was_cut_off_is_finished_before(
    failed: Job, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(output: str) -> None:
        if bucket_exchange.is_unsettled(output):
            raise OutputError("as if the machine had gone")

    trouble.is_there = True
    again = failed.model_copy(update={"output": failed.output.model_copy(update={"on_exists": "overwrite"})})
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="as if"):
        patch.setattr(bucket_exchange, "settle", gone)
        run_job(again)
    assert set(texts(OUT).values()) == {2}, "a listing shows rows of both"
    trouble.is_there = False
    assert retry(OUT) == 0
    assert not errors(OUT) and set(texts(OUT).values()) == {1}


def test_an_output_right_below_the_bucket_is_done_again_and_verified(
    tmp_path: Path, model_folder: Path, failed: Job, trouble: Trouble
) -> None:
    trouble.is_there = True
    assert run_job(made(tmp_path, model_folder, "s3://runs/flat")) == 3
    trouble.is_there = False
    assert retry("s3://runs/flat") == 0 and main(["verify", "s3://runs/flat"]) == 0


@pytest.mark.parametrize("name", ["team/out/nights", pytest.param("nights", marks=pytest.mark.extended)])
def test_a_run_of_a_dataset_is_done_again_and_the_dataset_says_so(
    tmp_path: Path, model_folder: Path, spine: Spine, bucket: MemoryBucket, trouble: Trouble, name: str
) -> None:
    dataset = f"s3://runs/{name}"
    write_input(tmp_path)
    blocks: dict[str, dict[str, Any]] = {"input": {"incremental": True}, "output": {"incremental": "partition"}}
    made_nightly = made(tmp_path, model_folder, dataset, **blocks)
    assert run_job(made_nightly) == 3
    (entry,) = read_ledger(dataset).entries
    run = f"{dataset}/run={entry.run}"
    with pytest.raises(ConfigError, match="is kept by incremental runs; name one of them"):
        retry(dataset)
    with take_lease(dataset), pytest.raises(OutputInUseError):
        retry(run)
    trouble.is_there = False
    assert retry(run) == 0 and not errors(run)
    assert report(dataset) == report(run) and report(dataset)["failed"] == 0
    assert run_job(made_nightly) == 0, "nothing failed of the last run with rows"
    assert {part for file in read_ledger(dataset).files.values() for part in file.parts} == {
        f"run={entry.run}/{part}" for part in tables(run)
    }
    # A later run replaces a part; what a retry of the first one finds is what is left.
    pq.write_table(pa.table({"text": ["a new"]}), tmp_path / "in" / "a.parquet")
    assert run_job(made_nightly) == 0
    of_last = report(dataset)
    assert retry(run) == 0 and report(dataset) == of_last != report(run)
    assert texts(dataset) == Counter(["a new", *(f"b {row}" for row in range(9))])
    assert main(["verify", run]) == 1, "the input is another by now"
