"""Jobs from bucket to bucket, on an S3 endpoint of this machine: whole runs as users start them."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from tokenizers import Tokenizer
from unit.records.s3_endpoint import SECRET, Endpoint, Fault, running_endpoint

from gptj_batch.model_folder import DEMO, resolve_folder
from gptj_batch.records.output import OutputFolder
from integration.running import Outcome, environment, outcome, start_command
from jobs.soak import Workload
from pipelines.ledger import read_ledger

pytestmark = [pytest.mark.timeout(900), pytest.mark.extended]

TARGET = "s3://jobs/team/output"
BAD_ROWS = (3, 64, 149)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with running_endpoint() as endpoint:
        endpoint.make_bucket("jobs")
        yield endpoint


class Work:
    """A job whose input is in the bucket, and what a local run made of it."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        self._folder, self._endpoint = folder, endpoint
        workload = Workload(folder, num_rows=160, request_s=0.2)
        self._job = workload.job("local")
        bucket, _ = fs.FileSystem.from_uri("s3://jobs")
        fs.copy_files(str(folder / "input"), "jobs/input", destination_filesystem=bucket)
        assert self.command("run", str(self._job)).code == 0
        self.local = pq.read_table(workload.output("local"))

    def start(self, *arguments: str, **settings: str) -> "subprocess.Popen[str]":
        env = environment(self._folder, **{**self._endpoint.environment, **settings})
        return start_command(list(arguments), env, self._folder)

    def command(self, *arguments: str, **settings: str) -> Outcome:
        ended = outcome(self.start(*arguments, **settings))
        assert SECRET not in ended.stdout + ended.stderr
        return ended

    def run_arguments(self, *overrides: str, target: str = TARGET) -> list[str]:
        return ["run", str(self._job), "input.path=s3://jobs/input", f"output.path={target}", *overrides]

    def table(self, target: str = TARGET) -> pa.Table:
        bucket, path = fs.FileSystem.from_uri(target)
        return pq.read_table(path, filesystem=bucket)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, endpoint: Endpoint) -> Work:
    return Work(tmp_path_factory.mktemp("work"), endpoint)


@pytest.fixture(scope="module")
def interrupted(work: Work) -> Work:
    """A run that was killed as a whole when some units were there; while it lived, a second one was refused."""
    first = work.start(*work.run_arguments())
    folder = OutputFolder.at(TARGET)
    while first.poll() is None and not folder.store.is_folder(folder.private):
        time.sleep(0.05)
    second = work.command(*work.run_arguments())
    while first.poll() is None and not folder.unit_indices():
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL and folder.unit_indices()
    assert second.code == 4 and "is held by another run that is alive" in second.stderr
    return work


@pytest.fixture(scope="module")
def finished(interrupted: Work, endpoint: Endpoint) -> Work:
    """The same run to its end, while the service is slow, refuses for a moment, and cuts connections off."""
    with endpoint.with_faults(
        Fault("GET", "half", "input", times=1),
        Fault("GET", "status", times=4),
        Fault("PUT", "status", times=4),
        Fault("PUT", "reset", "units", times=1),
        Fault("GET", "slow", times=3),
    ):
        ended = interrupted.command(*interrupted.run_arguments())
    assert ended.code == 0, ended.stderr
    assert "were done before" in ended.stderr
    return interrupted


def test_what_was_killed_and_run_again_is_what_a_local_run_makes(finished: Work) -> None:
    assert finished.table().to_pylist() == finished.local.to_pylist()
    folder = OutputFolder.at(TARGET)
    assert folder.store.names(folder.private) == ["config.yaml", "plan.json", "report.html", "run.json"]
    for name in folder.store.names(folder.private):
        assert SECRET.encode() not in folder.store.read(folder.private / name)


def test_the_commands_take_an_output_in_a_bucket(finished: Work) -> None:
    verified = finished.command("verify", TARGET)
    assert verified.code == 0 and "everything agrees" in verified.stdout, verified.stderr
    assert finished.command("report", TARGET).code == 0
    retried = finished.command("retry", TARGET)
    assert retried.code == 0 and "Nothing to do: no row of" in retried.stderr
    again = finished.command(*finished.run_arguments())
    assert again.code == 0 and "Nothing to do" in again.stderr


def test_failed_rows_are_done_again_though_the_retry_is_killed_and_refused(
    work: Work, endpoint: Endpoint, tmp_path: Path
) -> None:
    target, folder, trouble = "s3://jobs/again", OutputFolder.at("s3://jobs/again"), tmp_path / "trouble"
    failing = [f"model.path={_model_with(trouble, tmp_path)}", "input.path=s3://jobs/again-input"]
    arguments = work.run_arguments(*failing, target=target)
    trouble.touch()
    ended = work.command(*arguments)
    assert ended.code == 3, ended.stderr
    errors = work.table(target).column("error").to_pylist()
    assert [row for row, error in enumerate(errors) if error is not None] == [*BAD_ROWS]
    trouble.unlink()
    killed = work.start("retry", target)
    while killed.poll() is None and not folder.store.exists(folder.retry / "begun.json"):
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and work.table(target).column("error").to_pylist() == errors
    with endpoint.with_faults(Fault("PUT", "status", "again/part-", status=403)):
        refused = work.command("retry", target)
    assert refused.code == 1 and "PUT of s3://jobs/again/part-00000.parquet was refused" in refused.stderr
    assert work.table(target).column("error").to_pylist() == errors
    with endpoint.with_faults(Fault("PUT", "status", times=3), Fault("PUT", "reset", "again/part-", times=1)):
        ended = work.command("retry", target)
    assert ended.code == 0 and "160 rows: 160 done, 0 failed" in ended.stdout, ended.stderr
    assert work.command(*work.run_arguments(*failing, target="s3://jobs/never-failed")).code == 0
    assert work.table(target).to_pylist() == work.table("s3://jobs/never-failed").to_pylist()
    assert folder.store.names(folder.private) == ["config.yaml", "plan.json", "report.html", "run.json"]


def _model_with(trouble: Path, folder: Path) -> Path:
    """A model some of whose rows fail while a file is there, and these rows in the bucket."""
    model = folder / "model"
    shutil.copytree(resolve_folder(DEMO, None), model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    plain, marked = (set(tokenizer.encode(f"0: Shares fell.{mark}").ids) for mark in ("", "~"))
    config = json.loads((model / "config.json").read_text())
    config["fake_faults"] = {"memory_token": min(marked - plain), "while_file": str(trouble)}
    (model / "config.json").write_text(json.dumps(config))
    texts = [f"{row}: Shares fell.{'~' if row in BAD_ROWS else ''}" for row in range(160)]
    bucket, _ = fs.FileSystem.from_uri("s3://jobs")
    table = pa.table({"id": pa.array(range(160), pa.int64()), "text": texts})
    pq.write_table(table, "jobs/again-input/a.parquet", filesystem=bucket)
    return model


@pytest.mark.parametrize("mode", ["partition", "append"])
def test_two_nights_a_killed_one_and_a_rescore_give_what_they_give_locally(work: Work, mode: str) -> None:
    target = f"s3://jobs/nights-{mode}"
    bucket, _ = fs.FileSystem.from_uri("s3://jobs")
    files = [info.path for info in bucket.get_file_info(fs.FileSelector("jobs/input")) if info.is_file]
    inbox = f"jobs/inbox-{mode}"
    arguments = work.run_arguments(f"output.incremental={mode}", f"input.path=s3://{inbox}", target=target)
    arguments.append("--incremental")
    bucket.copy_file(files[0], f"{inbox}/a.parquet")
    assert work.command(*arguments).code == 0
    for number, file in enumerate(files[1:]):
        bucket.copy_file(file, f"{inbox}/b{number}.parquet")
    killed, folder = work.start(*arguments), OutputFolder.at(target)
    while killed.poll() is None and not _units_of_runs(folder):
        time.sleep(0.05)
    second = work.command(*arguments)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and second.code == 4, second.stderr
    assert len(read_ledger(target).entries) == 1
    ended = work.command(*arguments)
    assert ended.code == 0 and "goes on" in ended.stderr, ended.stderr
    assert work.command(*arguments, "task.seed=2").code == 2
    rescored = work.command(*arguments, "task.seed=2", "--rescore", "all")
    assert rescored.code == 0, rescored.stderr
    again = work.command(*arguments, "task.seed=2")
    assert again.code == 0 and "Nothing to do" in again.stderr
    local = f"{work._folder}/nights-{mode}"
    kept = work.run_arguments(f"output.incremental={mode}", f"input.path=s3://{inbox}", "task.seed=2", target=local)
    assert work.command(*kept, "--incremental").code == 0
    found, expected = (
        ds.dataset(path, filesystem=system, format="parquet", partitioning="hive").to_table().sort_by("id")
        for path, system in ((target.removeprefix("s3://"), bucket), (local, None))
    )
    assert found.drop_columns("run" if mode == "partition" else []).to_pylist() == (
        expected.drop_columns("run" if mode == "partition" else []).to_pylist()
    )
    assert [len(entry.files) for entry in read_ledger(target).entries] == [1, len(files) - 1, len(files)]


def _units_of_runs(folder: OutputFolder) -> bool:
    runs = folder.private / "runs"
    names = folder.store.names(runs) if folder.store.is_folder(runs) else []
    done = {entry.run for entry in read_ledger(folder.root).entries}
    return any(OutputFolder.at(runs / name).unit_indices() for name in names if name not in done)


def test_another_configuration_is_refused_and_overwrites_if_that_is_asked_for(finished: Work) -> None:
    before = finished.table()
    refused = finished.command(*finished.run_arguments("task.seed=2"))
    assert refused.code == 2 and "task.seed: 1 -> 2" in refused.stderr
    ended = finished.command(*finished.run_arguments("task.seed=2", "output.on_exists=overwrite"))
    assert ended.code == 0, ended.stderr
    after = finished.table()
    assert after.column("id").equals(before.column("id")) and not after.equals(before)
    folder = OutputFolder.at(TARGET)
    assert "next" not in folder.store.names(folder.private)


def test_a_put_that_is_refused_ends_the_run_with_where_and_what_to_do(work: Work, endpoint: Endpoint) -> None:
    with endpoint.with_faults(Fault("PUT", "status", "refused/_gptj_batch/units", status=403)):
        ended = work.command(*work.run_arguments(target="s3://jobs/refused"))
    assert ended.code == 1
    assert "PUT of s3://jobs/refused/_gptj_batch/units/unit-" in ended.stderr
    assert "Allow it to the run's credentials" in ended.stderr


def test_a_bucket_or_credentials_that_are_not_there_are_said_before_anything_runs(work: Work) -> None:
    missing = work.command(*work.run_arguments(target="s3://nowhere/out"))
    assert missing.code == 2 and "NoSuchBucket" in missing.stderr and len(missing.stderr.splitlines()) == 1
    nameless = work.command(
        "run", str(work._job), f"output.path={TARGET}", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""
    )
    assert nameless.code == 2 and "output.path" in nameless.stderr, nameless.stderr
