"""Running jobs: in this process, where Ray and its workers are shared, or as the command that users type."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from integration.in_process import WithoutRay, stages_here
from jobs.cli import main

# In every text that a job reads; it must not be found in anything that a run says.
CANARY = "zqxcanary"
TIMEOUT_S = 240
_started: "list[subprocess.Popen[str]]" = []


@dataclass(frozen=True)
class Outcome:
    """How a run ended and what it said."""

    code: int
    stdout: str
    stderr: str


def write_job(file: Path, **blocks: Any) -> Path:
    """Write a job file."""
    file.write_text(yaml.safe_dump({"name": "test-job", **blocks}), encoding="utf-8")
    return file


def run_here(job: Path, *arguments: str) -> Outcome:
    """Run `gptj-batch run` in this process, on the cluster that it is connected to; see the marker `without_ray`."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr), stages_here() if WithoutRay.now else nullcontext():
        code = main(["run", str(job), *arguments])
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def environment(home: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a user whose home is `home`, and who has set nothing of Ray's but `settings`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**inherited, "PATH": path, "HOME": str(home), **settings}


def start_command(
    arguments: list[str], env: Mapping[str, str], folder: Path, command: Sequence[str] = ("gptj-batch",)
) -> "subprocess.Popen[str]":
    """Start `gptj-batch` in a process group of its own, as a shell does; see `end_started`."""
    process = subprocess.Popen(
        [*command, *arguments],
        env=dict(env),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _started.append(process)
    return process


def end_started() -> None:
    """Kill the commands that a failed test has left: they would hold the CPUs that the next tests' jobs need."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def outcome(process: "subprocess.Popen[str]", timeout_s: float = TIMEOUT_S) -> Outcome:
    """Wait for a started command."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, stdout, stderr)


def output_table(output: Path) -> pa.Table:
    """Return an output as any Parquet reader sees it."""
    return pq.read_table(output)


def run_report(output: Path) -> dict[str, Any]:
    """Return an output's `run.json`."""
    report: dict[str, Any] = json.loads((output / "_gptj_batch" / "run.json").read_text())
    return report
