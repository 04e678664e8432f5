"""Soak: runs that are killed at random moments and run again, each compared with an undisturbed one; `make soak`.

Every round starts the command in a process of its own with a Ray of its own, kills one of its processes by SIGKILL (the
command itself, the raylet, the head's server, a replica, any worker), and runs the command until it has finished.
The model is the fake backend, slowed down, so that a round is about what survives and not about arithmetic.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from gptj_batch.model_folder import DEMO, resolve_folder
from jobs.bench.surroundings import surroundings

VICTIMS = ("driver", "raylet", "head", "replica", "worker")
MAX_RUNS = 12
RESULT = Path(__file__).parent / "bench" / "results" / "soak.json"
_IN_COMMAND = {"raylet": "raylet/raylet", "head": "gcs_server", "replica": "InferStage", "worker": "ray::"}


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a disturbed run's rows; nothing, if all is zero."""

    lost: int
    doubled: int
    different: int

    @property
    def is_good(self) -> bool:
        """Say whether the rows are those of an undisturbed run."""
        return not (self.lost or self.doubled or self.different)


class Workload:
    """An input and its job, in a folder of its own."""

    def __init__(self, folder: Path, num_rows: int = 320, request_s: float = 0.03) -> None:
        self._folder = folder
        self._model = folder / "model"
        self._num_rows = num_rows
        shutil.copytree(resolve_folder(DEMO, None), self._model)
        config = json.loads((self._model / "config.json").read_text())
        (self._model / "config.json").write_text(json.dumps({**config, "fake_faults": {"request_s": request_s}}))
        texts = [f"{row}: Shares fell as the market closed." for row in range(num_rows)]
        table = pa.table({"id": pa.array(range(num_rows), pa.int64()), "text": texts})
        (folder / "input").mkdir()
        for number, start in enumerate(range(0, num_rows, -(-num_rows // 3))):
            pq.write_table(table.slice(start, -(-num_rows // 3)), folder / "input" / f"{number}.parquet")

    def job(self, name: str) -> Path:
        """Write the job whose output has this name, and return its file."""
        job = {
            "name": "soak",
            "input": {"path": str(self._folder / "input")},
            "task": {"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 8, "temperature": 1.0, "seed": 1},
            "model": {"path": str(self._model)},
            "backend": {"kind": "fake"},
            "replicas": {"cpus_each": 0.5, "max": 2},
            "output": {"path": str(self.output(name)), "target_file_mb": 1},
            "errors": {"max_failed_rows": 0},
        }
        file = self._folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(job), encoding="utf-8")
        return file

    def output(self, name: str) -> Path:
        """Return the folder of an output."""
        return self._folder / name

    def compare(self, name: str, undisturbed: str) -> Verdict:
        """Return what is wrong with an output's rows."""
        found, wanted = (pq.read_table(self.output(one)) for one in (name, undisturbed))
        counts = Counter(found.column("id").to_pylist())
        lost = sum(1 for row in range(self._num_rows) if row not in counts)
        doubled = sum(count - 1 for count in counts.values())
        pairs = zip(found.sort_by("id").to_pylist(), wanted.sort_by("id").to_pylist(), strict=False)
        return Verdict(lost, doubled, 0 if lost or doubled else sum(one != other for one, other in pairs))


def victims(root: int, kind: str) -> list[psutil.Process]:
    """Return the processes of a kind among those that process `root` started, and itself for `driver`."""
    try:
        process = psutil.Process(root)
        if kind == "driver":
            return [process]
        commands = [(child, _command(child)) for child in process.children(recursive=True)]
        # Agents are parts of their raylet, which ends with them.
        return [child for child, command in commands if _IN_COMMAND[kind] in command and "Agent" not in command]
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_one(root: int, kind: str, draw: random.Random) -> bool:
    """Kill one process of a kind below `root`; False where there is none."""
    found = victims(root, kind)
    if not found:
        return False
    try:
        os.kill(draw.choice(found).pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def run_disturbed(workload: Workload, name: str, kind: str, draw: random.Random, longest_s: float) -> tuple[int, bool]:
    """Run a job until it has finished, killing one of its processes in the first run.

    Returns how many runs it took, and whether a process was there to be killed before the run had ended.
    """
    job = workload.job(name)
    with started(job) as process:
        moment = time.monotonic() + draw.uniform(0.0, longest_s)
        killed = False
        while process.poll() is None and not killed:
            if time.monotonic() >= moment:
                killed = kill_one(process.pid, kind, draw)
            time.sleep(0.02)
        code = process.wait()
    for number in range(1, MAX_RUNS):
        if code == 0:
            return number, killed
        with started(job) as process:
            code = process.wait()
    raise RuntimeError(f"{name}: not finished after {MAX_RUNS} runs; the last one ended with {code}")


@contextmanager
def started(job: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Start the command on a job; where it has not ended by the end of the block, it is killed."""
    command = [sys.executable, "-m", "jobs.cli", "run", str(job)]
    with job.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()


def rounds(workload: Workload, draw: random.Random, number: int, longest_s: float) -> Iterator[dict[str, Any]]:
    """Yield what came of each of so many rounds, with every kind of victim in turn."""
    for index in range(number):
        kind, name = VICTIMS[index % len(VICTIMS)], f"round-{index:04d}"
        begun = time.monotonic()
        num_runs, killed = run_disturbed(workload, name, kind, draw, longest_s)
        verdict = workload.compare(name, "undisturbed")
        yield {
            "victim": kind,
            "killed": int(killed),
            "runs": num_runs,
            "lost": verdict.lost,
            "doubled": verdict.doubled,
            "different": verdict.different,
            "seconds": round(time.monotonic() - begun, 1),
        }
        if verdict.is_good:
            shutil.rmtree(workload.output(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rounds, print a line for each and a table at the end; 1 where any row was lost, doubled or different."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments and compare what comes out.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; printed, so that it can be repeated")
    parser.add_argument("--json", type=Path, default=RESULT, help="where the figures go")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="gptj-batch-soak-"))
    workload = Workload(folder, options.rows)
    begun = time.monotonic()
    with started(workload.job("undisturbed")) as process:
        if process.wait():
            print(f"the undisturbed run failed; see {folder}/undisturbed.log")
            return 1
    seconds = time.monotonic() - begun
    facts = {**surroundings(1), "seed": seed, "rows": options.rows, "undisturbed_s": round(seconds, 1)}
    done: list[dict[str, Any]] = []
    for result in rounds(workload, random.Random(seed), options.rounds, seconds):  # noqa: S311
        done.append(result)
        print(f"{len(done)}: {json.dumps(result)}", flush=True)
        table = {kind: _sums([one for one in done if one["victim"] == kind]) for kind in VICTIMS}
        # After every round: what is stopped after hours has shown something, too.
        options.json.write_text(json.dumps({**facts, "victims": table}, indent=2) + "\n", encoding="utf-8")
    print("\n".join(f"{kind}: {sums}" for kind, sums in table.items()))
    good = not any(one["lost"] or one["doubled"] or one["different"] for one in done)
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"what went wrong is kept in {folder}")
    return 0 if good else 1


def _sums(results: Sequence[dict[str, Any]]) -> dict[str, int]:
    sums = {name: sum(one[name] for one in results) for name in ("killed", "runs", "lost", "doubled", "different")}
    return {"rounds": len(results), **sums}


if __name__ == "__main__":
    sys.exit(main())
