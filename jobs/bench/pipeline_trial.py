"""A trial: one program's run over some rows in a process of its own, its times, and what it wrote."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.records.output import OutputFolder
from jobs.bench.pipeline_plan import KV_CACHE_BYTES, NEW_TOKENS, PipelineLeg
from jobs.bench.pipeline_work import COLUMNS, TEMPLATE, LegWork, noted_time
from jobs.bench.protocol import ROOT, WorkerError
from jobs.bench.vllm_env import vllm_environment
from jobs.bench.vllm_overlay import overlay_python

LIMIT_S: Final = 900.0
POLL_S: Final = 0.02
GIB: Final = 1 << 30
MODULES: Final = {
    "ray.data.llm": "jobs.bench.leg_ray_llm",
    "map_batches": "jobs.bench.leg_map_batches",
    "bare engine": "jobs.bench.leg_bare_engine",
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was measured.

    start_s: from the start of the process until the first rows reached the loaded model
    steady_s: from there until all rows were on the disk    cores_share: of all cores of the machine, how much worked
    """

    rows: int
    gemm_gflops: float
    start_s: float
    steady_s: float
    cores_share: float

    def rate(self, clock: str) -> float:
        """Return the rows in a second, by this clock."""
        return self.rows / (self.steady_s if clock == "steady" else self.start_s + self.steady_s)

    def facts(self) -> dict[str, Any]:
        """Return everything, as it goes into JSON."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where trials run: a folder for their files, and what is the same for all."""

    folder: Path
    checkpoint: Path
    dtype: str
    threads: int

    def run(self, leg: PipelineLeg, source: Path, gemm: Callable[[], float]) -> tuple[Trial, pa.Table]:
        """Run a program over the rows of a file; return its times and its output, in the order of the ids.

        Raises WorkerError where it cannot start, fails, or takes longer than a quarter of an hour.
        """
        here = self.folder / "trial"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        work = LegWork(
            input=str(source),
            output=str(here / "out"),
            started=str(here / "started"),
            done=str(here / "done"),
            checkpoint=str(self.checkpoint),
            dtype=self.dtype,
            new_tokens=NEW_TOKENS,
            threads=self.threads,
            kv_cache_bytes=KV_CACHE_BYTES,
            settings=self._settings(leg),
        )
        command = self._command(leg, work, here)
        gflops = gemm()
        before, began = psutil.cpu_times(), time.time()
        _watch(command, work, here / "log", leg.name)
        busy = _busy_share(before, psutil.cpu_times())
        started, ended = noted_time(work.started), _end(work)
        if started is None or ended is None:
            raise WorkerError(f"{leg.name} did not say when it began or ended; {_last_line(here / 'log')}")
        table = _output(work)
        trial = Trial(
            rows=table.num_rows,
            gemm_gflops=gflops,
            start_s=started - began,
            steady_s=ended - started,
            cores_share=busy,
        )
        return trial, table

    def _settings(self, leg: PipelineLeg) -> dict[str, Any]:
        if leg.program != "ray.data.llm":
            return leg.settings
        # All but what binds threads to cores: Ray's own processes work on these, too.
        environment = {
            name: value
            for name, value in vllm_environment(self.threads).items()
            if name not in ("KMP_AFFINITY", "VLLM_CPU_OMP_THREADS_BIND")
        }
        own = {"OMP_NUM_THREADS": str(self.threads), **leg.settings.get("environment", {})}
        return {**leg.settings, "environment": environment | own}

    def _command(self, leg: PipelineLeg, work: LegWork, here: Path) -> list[str]:
        needs_vllm = leg.program == "ray.data.llm" or leg.settings.get("kind") == "vllm"
        python = str(overlay_python()) if needs_vllm else sys.executable
        if leg.program == "ours":
            file = here / "job.yaml"
            file.write_text(json.dumps(job_of(leg, work)))  # JSON is YAML
            return [python, "-m", "jobs.cli", "run", str(file)]
        file = here / "work.json"
        work.write(file)
        return [python, "-m", MODULES[leg.program], str(file)]


def job_of(leg: PipelineLeg, work: LegWork) -> dict[str, Any]:
    """Return the job that a user would write for this."""
    return {
        "name": "bench",
        "input": {"path": work.input, "key": "id"},
        "task": {
            "kind": "generate",
            "prompt": TEMPLATE,
            "max_new_tokens": work.new_tokens,
            "min_new_tokens": work.new_tokens,
        },
        "model": {"path": work.checkpoint, "dtype": work.dtype},
        "backend": {**leg.settings, "kv_cache_gb": work.kv_cache_bytes / GIB},
        "output": {"path": work.output},
    }


def _watch(command: list[str], work: LegWork, log: Path, name: str) -> None:
    """Run a program to its end, noting when a job of ours hands its first rows to the model."""
    attempts = Path(OutputFolder.at(work.output).private) / "attempts"
    until = time.monotonic() + LIMIT_S
    with _process(command, log) as process:
        while process.poll() is None:
            if not Path(work.started).exists() and attempts.exists():
                _note_first(attempts, Path(work.started))
            if time.monotonic() > until:
                raise WorkerError(f"{name} took more than {LIMIT_S:.0f} s; {_last_line(log)}")
            time.sleep(POLL_S)
    if process.returncode:
        raise WorkerError(f"{name} ended with exit code {process.returncode}; {_last_line(log)}")


@contextmanager
def _process(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a package that is installed has its bytecode
    with log.open("w") as file:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _note_first(attempts: Path, started: Path) -> None:
    """Take the first note of a replica that it has rows (`records.attempts`) as the moment when it got them."""
    times = [file.stat().st_mtime for file in attempts.glob("unit-*.json") if file.exists()]
    if times:
        started.write_text(repr(min(times)))


def _end(work: LegWork) -> float | None:
    """Return when all was done: as the leg says, or when the last file was written."""
    output = Path(work.output)
    done, success = noted_time(work.done), output / "_SUCCESS"
    if done is not None:
        return done
    files = [success] if success.exists() else sorted(output.glob("*.parquet"))
    return max((file.stat().st_mtime for file in files), default=None)


def _output(work: LegWork) -> pa.Table:
    """Return the output's columns that all programs write. Raises WorkerError where rows are missing or wrong."""
    wanted = [*COLUMNS, "generated_text", "num_prompt_tokens", "num_generated_tokens"]
    tables = [pq.read_table(file, columns=wanted) for file in sorted(Path(work.output).glob("*.parquet"))]
    if not tables:
        raise WorkerError("wrong output: there is none")
    table = pa.concat_tables(tables, promote_options="permissive").sort_by("id")
    source = pq.read_table(work.input, columns=list(COLUMNS)).sort_by("id")
    if table.select(COLUMNS).to_pylist() != source.to_pylist():
        raise WorkerError("wrong output: its rows are not those of the input")
    counts = set(table["num_generated_tokens"].to_pylist())
    if counts != {work.new_tokens}:
        raise WorkerError(f"wrong output: rows of {sorted(map(str, counts))} tokens, not of {work.new_tokens}")
    return table


def _busy_share(before: Any, after: Any) -> float:
    spent = [late - early for early, late in zip(before, after, strict=True)]
    idle = (after.idle - before.idle) + (after.iowait - before.iowait)
    return float(1 - idle / max(sum(spent), 1e-9))


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").strip().splitlines() if line.strip()]
    return f"its log ends with: {lines[-1][:400] if lines else 'nothing'}"
