"""The command as users run it: a process with an exit code, two streams, and signals."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from integration.clusters import RunningCluster
from integration.running import (
    CANARY,
    TIMEOUT_S,
    Outcome,
    environment,
    outcome,
    output_table,
    start_command,
    write_job,
)
from integration.tiny_model import TinyModel
from jobs.soak import kill_one

pytestmark = pytest.mark.timeout(900)

GENERATE = {"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 6}
NUM_SLOW_ROWS = 200


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a hundred records and a home of its own."""
    (tmp_path / "home").mkdir()
    texts = [f"{CANARY} {row}: Shares fell." for row in range(100)]
    pq.write_table(pa.table({"id": range(100), "text": texts}), tmp_path / "records.parquet")
    return tmp_path


def job(here: Path, tiny: TinyModel, **blocks: Any) -> str:
    settings = {
        "input": {"path": str(here / "records.parquet")},
        "task": GENERATE,
        "model": {"path": str(tiny.folder), "dtype": "float32"},
        "output": {"path": str(here / "output")},
        **blocks,
    }
    return str(write_job(here / "job.yaml", **settings))


def start(here: Path, *arguments: str, **settings: str) -> "subprocess.Popen[str]":
    return start_command(["run", *arguments], environment(here / "home", **settings), here)


def run(here: Path, *arguments: str, **settings: str) -> Outcome:
    return outcome(start(here, *arguments, **settings))


def one_paragraph(ended: Outcome) -> str:
    """Return what the command had to say in the end, which must be no more than a user can read."""
    lines = ended.stderr.strip().splitlines()
    said = [line for line in lines if not (line.endswith("; starting") or line.startswith("backend: "))]
    assert said[0].startswith("gptj-batch: "), ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(said) == 1, ended.stderr
    return said[0]


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_a_run_on_a_ray_of_its_own_ends_with_0_and_leaves_nothing_but_its_output(here: Path, tiny: TinyModel) -> None:
    config = job(here, tiny)
    process = start(here, config)
    children: set[psutil.Process] = set()
    while process.poll() is None:
        try:
            children |= set(psutil.Process(process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    ended = outcome(process)
    assert ended.code == 0, ended.stderr
    assert "100 rows: 100 done, 0 failed" in ended.stdout
    assert "100 of 100 rows (100%)" in ended.stderr
    assert CANARY not in ended.stdout + ended.stderr
    assert output_table(here / "output").column("id").to_pylist() == list(range(100))
    # no token in the user's home, and no process
    assert not (here / "home" / ".ray").exists()
    assert len(children) > 3
    assert_gone(children)


@pytest.mark.extended  # Ray notices after more than a minute
def test_a_worker_that_is_killed_as_it_starts_holds_nobody_up(here: Path, tiny: TinyModel) -> None:
    process = start(here, job(here, tiny, backend={"kind": "fake"}))
    while not kill_one(process.pid, "worker", random.Random(0)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    ended = outcome(process, timeout_s=120)
    assert ended.code == 0, ended.stderr
    assert output_table(here / "output").column("id").to_pylist() == list(range(100))


def assert_gone(processes: set[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_more_failed_rows_than_allowed_end_with_3(here: Path, tiny: TinyModel, one_node: RunningCluster) -> None:
    config = job(here, tiny, task={**GENERATE, "prompt": "{{ 1 / (id % 10) }}"}, backend={"kind": "fake"})
    ended = run(here, config, "--address", one_node.address, RAY_AUTH_MODE="disabled")
    assert ended.code == 3, ended.stderr
    assert "100 rows: 90 done, 10 failed" in ended.stdout
    assert "errors.max_failed_rows" in ended.stdout
    assert output_table(here / "output").column("error").null_count == 90


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("task.max_new_token=4", "did you mean task.max_new_tokens?"),
        ("task.temperature=-1", "task.temperature"),
        ("model.path=./nowhere", "model path './nowhere' is neither a folder nor a hub name"),
        ("input.path=./nothing/*.parquet", 'nothing matches "./nothing/*.parquet"'),
        ('task.prompt="{{ txt }}"', 'Did you mean "text"?'),
    ],
    ids=["unknown setting", "value", "model", "input", "column"],
)
def test_what_the_user_must_change_ends_with_2_before_anything_starts(
    here: Path, tiny: TinyModel, override: str, reason: str
) -> None:
    ended = run(here, job(here, tiny), override)
    assert ended.code == 2
    assert reason in one_paragraph(ended)
    assert not (here / "output").exists()


def test_a_cluster_that_is_not_there_ends_with_2_at_once(here: Path, tiny: TinyModel) -> None:
    began = time.monotonic()
    ended = run(here, job(here, tiny), "--address", "127.0.0.1:1")
    assert ended.code == 2
    assert "no Ray cluster can be reached at 127.0.0.1:1" in one_paragraph(ended)
    assert time.monotonic() - began < 60


# --- checkpoints that are broken --------------------------------------------------------------------------------------


@pytest.fixture
def broken(here: Path, tiny: TinyModel) -> TinyModel:
    return TinyModel(Path(shutil.copytree(tiny.folder, here / "broken")))


@pytest.mark.extended
def test_weights_that_were_cut_off_end_with_2_and_the_name_of_the_file(here: Path, broken: TinyModel) -> None:
    file = broken.folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    began = time.monotonic()
    ended = run(here, job(here, broken))
    assert ended.code == 2, ended.stderr
    assert str(file) in one_paragraph(ended)
    assert time.monotonic() - began < 60, "the replica was not started again and again"


def test_a_tensor_of_another_shape_ends_with_2_and_the_names_of_folder_and_tensor(
    here: Path, broken: TinyModel, one_node: RunningCluster
) -> None:
    file = broken.folder / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.h.1.mlp.fc_in.weight"] = torch.zeros(3, 5)
    save_file(tensors, file, metadata={"format": "pt"})
    began = time.monotonic()
    ended = run(here, job(here, broken), "--address", one_node.address, RAY_AUTH_MODE="disabled")
    assert ended.code == 2, ended.stderr
    said = one_paragraph(ended)
    assert str(broken.folder) in said
    assert "transformer.h.1.mlp.fc_in.weight: [3, 5] in the file" in said
    assert time.monotonic() - began < 60, "the replica was not started again and again"


# --- signals ----------------------------------------------------------------------------------------------------------


def slow_job(folder: Path, tiny: TinyModel) -> str:
    """A job whose units come out one after the other, since two of its rows are decoded at a time."""
    texts = [f"{CANARY} {row}: Shares fell." for row in range(NUM_SLOW_ROWS)]
    pq.write_table(pa.table({"id": range(NUM_SLOW_ROWS), "text": texts}), folder / "records.parquet")
    task = {**GENERATE, "max_new_tokens": 36, "temperature": 1.0, "seed": 3}
    return job(folder, tiny, task=task, backend={"max_running": 2}, replicas={"cpus_each": 1.0})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: TinyModel, one_node: RunningCluster) -> pa.Table:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = run(folder, slow_job(folder, tiny), "--address", one_node.address, RAY_AUTH_MODE="disabled")
    assert ended.code == 0, ended.stderr
    return output_table(folder / "output")


def wait_for_units(here: Path, process: "subprocess.Popen[str]", num_units: int) -> None:
    until = time.monotonic() + TIMEOUT_S
    while len(list((here / "output" / "_gptj_batch" / "units").glob("*.parquet"))) < num_units:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize(
    ("number", "code", "whole_group"),
    [
        (signal.SIGINT, 130, True),
        (signal.SIGTERM, 143, False),
    ],
    ids=["Ctrl-C in a terminal", "SIGTERM as ray job stop sends it"],
)
def test_a_run_that_is_stopped_says_so_and_a_rerun_finishes_it(
    here: Path, tiny: TinyModel, undisturbed: pa.Table, number: signal.Signals, code: int, whole_group: bool
) -> None:
    config = slow_job(here, tiny)
    process = start(here, config)
    wait_for_units(here, process, 2)
    children = set(psutil.Process(process.pid).children(recursive=True))
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    stopped = outcome(process, timeout_s=120)
    assert stopped.code == code, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert f"stopped by {number.name}; run the same command again to go on" in stopped.stderr
    assert not (here / "output" / "_SUCCESS").exists()
    assert not list((here / "output").glob("part-*"))
    assert_gone(children)
    finished = run(here, config)
    assert finished.code == 0, finished.stderr
    assert "were done before)" in finished.stderr
    assert 0 < json.loads((here / "output" / "_gptj_batch" / "run.json").read_text())["rows_this_run"] < NUM_SLOW_ROWS
    assert output_table(here / "output").to_pylist() == undisturbed.to_pylist()
