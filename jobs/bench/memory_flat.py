"""Measure that a run streams: what the driver and the replica hold while a Parquet file of 100,000 rows goes through.

    python -m jobs.bench.memory_flat [--rows 100000] [--backend fake] [--model demo]

The file is one row group, which is the hardest to stream. The job runs as a process of its own; it and its children are
looked at from outside. Shares are of the rows whose unit is on the disk; publishing, at the end, is in the peak only.
Resident memory counts pages of Ray's object store that a process has touched; `driver_own_mb` leaves these out.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.records.output import OutputFolder
from pipelines.prepare import unit_rows

RESULTS = Path(__file__).parent / "results"
SHARES = (0.1, 0.25, 0.5)
SAMPLE_EVERY_S = 0.25
MIB = 1 << 20
REPLICA = "InferStage"
SENTENCES = (
    "Shares closed higher on Friday as investors weighed the outlook for rates and oil.",
    "The home side came from behind in the final minutes to take the series.",
    "Officials met for a second day of talks without agreeing on a date.",
    "The new release doubles the speed of the search and halves the memory it needs.",
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Memory at one moment, in MiB; `workers` are Ray's processes that read, tokenize, decode and write, together."""

    share: float
    seconds: float
    driver_mb: float
    driver_own_mb: float
    replica_mb: float
    workers_mb: float
    num_workers: int


def write_records(file: Path, num_rows: int) -> None:
    """Write the input: texts of 200 to 500 characters, one row group."""
    texts = [f"{row}. " + " ".join(SENTENCES[(row + i) % 4] for i in range(3 + row % 4)) for row in range(num_rows)]
    pq.write_table(pa.table({"id": range(num_rows), "text": texts}), file, row_group_size=num_rows)


def measure(num_rows: int, backend: str, model: str) -> list[Sample]:
    """Run a job over so many rows, looking at its processes until it ends. Raises RuntimeError where it fails."""
    with tempfile.TemporaryDirectory(prefix="gptj-memory-") as folder:
        here = Path(folder)
        write_records(here / "records.parquet", num_rows)
        job = {
            "name": "memory-flat",
            "input": {"path": str(here / "records.parquet")},
            "task": {"kind": "generate", "prompt": "{{ text[:120] }}", "max_new_tokens": 16, "truncate": "right"},
            "model": {"path": model},
            "backend": {"kind": backend},
            "output": {"path": str(here / "output")},
        }
        (here / "job.yaml").write_text(json.dumps(job))  # JSON is YAML
        command = [sys.executable, "-m", "jobs.cli", "run", str(here / "job.yaml")]
        with (here / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 - ourselves
        samples = _watch(process, OutputFolder.at(here / "output"), num_rows)
        if process.returncode:
            raise RuntimeError(f"the run ended with {process.returncode}: {(here / 'log').read_text()}")
        return samples


def _watch(process: "subprocess.Popen[bytes]", output: OutputFolder, num_rows: int) -> list[Sample]:
    began = time.monotonic()
    samples: list[Sample] = []
    while process.poll() is None:
        rows = min(len(output.unit_indices()) * unit_rows(num_rows), num_rows)
        share = 1.0 if output.store.exists(output.success) else rows / num_rows
        try:
            samples.append(_sample(psutil.Process(process.pid), max(share, _last_share(samples)), began))
        except psutil.NoSuchProcess:
            break
        time.sleep(SAMPLE_EVERY_S)
    process.wait()
    return samples


def _last_share(samples: Sequence[Sample]) -> float:
    """Return how far the run was: publishing takes the units away, and with them what is counted."""
    return samples[-1].share if samples else 0.0


def _sample(driver: psutil.Process, share: float, began: float) -> Sample:
    """Look at the driver and at the workers of its Ray."""
    replica = workers = 0.0
    num_workers = 0
    for child in driver.children(recursive=True):
        try:
            title, resident = " ".join(child.cmdline()), child.memory_info().rss / MIB
        except psutil.NoSuchProcess:
            continue
        if REPLICA in title:
            replica += resident
        elif title.startswith("ray::"):
            workers += resident
            num_workers += 1
    memory = driver.memory_info()
    return Sample(
        share=round(share, 4),
        seconds=round(time.monotonic() - began, 2),
        driver_mb=round(memory.rss / MIB, 1),
        driver_own_mb=round((memory.rss - getattr(memory, "shared", 0)) / MIB, 1),
        replica_mb=round(replica, 1),
        workers_mb=round(workers, 1),
        num_workers=num_workers,
    )


def at_shares(samples: Sequence[Sample]) -> dict[str, Sample]:
    """Return the first sample of every share of SHARES, and as 100% the last one in which there was a replica."""
    found = {f"{share:.0%}": next(sample for sample in samples if sample.share >= share) for share in SHARES}
    return {**found, "100%": next(sample for sample in reversed(samples) if sample.replica_mb > 0)}


def peak(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the most that each kind of process held at any moment."""
    names = ("driver_mb", "driver_own_mb", "replica_mb", "workers_mb")
    return {name: max(getattr(sample, name) for sample in samples) for name in names}


def surroundings() -> dict[str, Any]:
    """Return commit, hardware and versions."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    versions = {name: version(name) for name in ("ray", "pyarrow", "torch")} | {"python": platform.python_version()}
    return {
        "commit": git.stdout.strip() if git.returncode == 0 else None,
        "hardware": {"cpus": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 1e9, 1)},
        "versions": versions,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--backend", default="fake", choices=["fake", "native"])
    parser.add_argument("--model", default="demo", help="demo, or a folder; the fake backend needs its tokenizer only")
    arguments = parser.parse_args()
    samples = measure(arguments.rows, arguments.backend, arguments.model)
    found = at_shares(samples)
    report = {
        **surroundings(),
        "config": vars(arguments),
        "at": {name: asdict(sample) for name, sample in found.items()},
        "peak": peak(samples),
        "seconds": samples[-1].seconds,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"memory_flat-{arguments.backend}-{arguments.rows}.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'rows done':<10}{'driver MB':>10}{'own MB':>9}{'replica MB':>12}{'workers MB':>12}{'seconds':>9}")
    for name, sample in found.items():
        print(
            f"{name:<10}{sample.driver_mb:>10.1f}{sample.driver_own_mb:>9.1f}{sample.replica_mb:>12.1f}"
            f"{sample.workers_mb:>12.1f}{sample.seconds:>9.1f}"
        )
    print(f"{'peak':<10}{''.join(f'{value:>11.1f}' for value in report['peak'].values())}; written to {file}")


if __name__ == "__main__":
    main()
