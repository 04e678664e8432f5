"""Jobs handed to a running cluster: `ray job submit --working-dir . -- python jobs/run.py CONFIG`."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integration.clusters import RunningCluster, connect
from integration.running import CANARY, environment, output_table, run_here, write_job
from integration.tiny_model import TinyModel
from pipelines.cluster import IDLE_WORKERS

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S, JOB_TIMEOUT_S = 120, 300
# Ray takes 10002 to 19999 for its workers.
PORTS = range(20011, 29989)


@dataclass(frozen=True)
class Head:
    """A cluster that was started by `ray start`: where its dashboard is, and the environment that reaches it."""

    dashboard: str
    env: Mapping[str, str]


def free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody listens at, wherever the search begins."""
    found: list[int] = []
    start = secrets.randbelow(len(PORTS))
    for port in [*PORTS[start:], *PORTS[:start]]:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == number:
            return found
    raise AssertionError("no free ports")


@contextmanager
def ray_head(home: Path, **settings: str) -> Iterator[Head]:
    """Start a head node as users do, and end its process group afterwards (`ray stop` would end everybody's)."""
    folder = tempfile.mkdtemp(prefix="gj-", dir="/tmp")
    env = environment(home, RAY_USAGE_STATS_ENABLED="0", RAY_num_workers_soft_limit=str(IDLE_WORKERS), **settings)
    names = (
        "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
        "metrics-export-port", "node-manager-port", "object-manager-port", "ray-client-server-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = ["ray", "start", "--head", "--block", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command += ["--num-cpus=2", f"--object-store-memory={1 << 30}", "--disable-usage-stats"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = Path(folder) / "start.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=env, cwd=home, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        head = Head(f"http://127.0.0.1:{ports['dashboard-port']}", env)
        _wait_until_up(head, process, log)
        yield head
    finally:
        for number, wait_s in ((signal.SIGTERM, 5), (signal.SIGKILL, 20)):
            try:
                os.killpg(process.pid, number)
                process.wait(wait_s)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(head: Head, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for an answer, be it that a token is missing."""
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{head.dashboard}/api/jobs/", timeout=5)
        except urllib.error.HTTPError as error:
            assert error.code == 401, error
            return
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"the head did not come up in {START_TIMEOUT_S} s: {log.read_text()}")


@pytest.fixture(scope="module")
def open_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster that asks nobody for a token."""
    with ray_head(tmp_path_factory.mktemp("home"), RAY_AUTH_MODE="disabled") as head:
        yield head


def submit(
    head: Head, working_dir: Path, config: Path, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    command = ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", str(working_dir)]
    return subprocess.run(
        [*command, "--", "python", "jobs/run.py", str(config)],
        env=dict(head.env if env is None else env),
        cwd=working_dir,
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
    )


@pytest.fixture
def config(tmp_path: Path, tiny: TinyModel) -> Path:
    (tmp_path / "home").mkdir()
    texts = [f"{CANARY} {row}: The team won." for row in range(100)]
    pq.write_table(pa.table({"id": range(100), "text": texts}), tmp_path / "records.parquet")
    return write_job(
        tmp_path / "job.yaml",
        input={"path": str(tmp_path / "records.parquet")},
        task={"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 8, "temperature": 0.7},
        model={"path": str(tiny.folder), "dtype": "float32"},
        output={"path": str(tmp_path / "submitted")},
    )


def test_a_submitted_job_gives_what_a_local_run_gives_and_shows_how_far_it_is(
    config: Path, tmp_path: Path, one_node: RunningCluster, open_head: Head
) -> None:
    connect(one_node)
    assert run_here(config, f"output.path={tmp_path / 'local'}").code == 0
    done = submit(open_head, REPOSITORY, config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 of 100 rows (100%)" in done.stdout
    assert "100 rows: 100 done, 0 failed" in done.stdout
    assert CANARY not in done.stdout + done.stderr
    assert output_table(tmp_path / "submitted").equals(output_table(tmp_path / "local"))


@pytest.mark.extended
def test_a_cluster_that_asks_for_a_token_runs_jobs_of_those_who_have_it(config: Path, tmp_path: Path) -> None:
    token = secrets.token_hex(32)
    with ray_head(tmp_path / "home", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as head:
        refused = submit(head, config.parent, config, environment(tmp_path / "home", RAY_AUTH_MODE="disabled"))
        assert refused.returncode != 0
        assert not (tmp_path / "submitted").exists()
        done = submit(head, REPOSITORY, config)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "100 rows: 100 done, 0 failed" in done.stdout
        assert token not in done.stdout + done.stderr
        assert output_table(tmp_path / "submitted").num_rows == 100


def gptj_batch(head: Head, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["gptj-batch", *arguments, "--address", head.dashboard],
        env=dict(head.env),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
    )


@pytest.mark.extended
def test_the_commands_about_submitted_jobs_work_together(config: Path, tmp_path: Path, open_head: Head) -> None:
    """Paths in the job file are relative, and the cluster's folder is another one."""
    config.write_text(config.read_text().replace(f"{tmp_path}/", ""))
    sent = gptj_batch(open_head, tmp_path, "submit", config.name, "--wait", "--submission-id", "once")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert sent.stdout.splitlines()[0] == "once" and "100 rows: 100 done, 0 failed" in sent.stdout
    assert output_table(tmp_path / "submitted").num_rows == 100

    twice = gptj_batch(open_head, tmp_path, "submit", config.name, "--submission-id", "once")
    assert twice.returncode == 2 and "already has a job once" in twice.stderr

    status = gptj_batch(open_head, tmp_path, "status", "once")
    assert "SUCCEEDED" in status.stdout and "test-job" in status.stdout and "run.json" in status.stdout
    assert "100 done" in gptj_batch(open_head, tmp_path, "logs", "once").stdout
    assert "had ended already" in gptj_batch(open_head, tmp_path, "stop", "once").stdout
    unknown = gptj_batch(open_head, tmp_path, "status", "never")
    assert unknown.returncode == 2 and "has no job never" in unknown.stderr

    bad = gptj_batch(open_head, tmp_path, "submit", config.name, "input.path=nothing.parquet", "--wait")
    assert bad.returncode == 2, bad.stdout + bad.stderr
    listed = gptj_batch(open_head, tmp_path, "list").stdout
    assert listed.count("once") == 1 and "FAILED" in listed and CANARY not in listed
