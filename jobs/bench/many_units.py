"""Many units: what a run over 100,000 of them costs beside its rows: planning, resuming, reconciling, publishing.

No model and no Ray: units are written, a tenth of them is taken away as if the run had been cut off, and every step of
a rerun is timed, with the memory that this process holds.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.records.output import OutputFolder
from gptj_batch.records.publish import publish
from gptj_batch.records.read import plan_units
from jobs.bench.surroundings import surroundings
from pipelines.config import Job
from pipelines.destination import claim_output
from pipelines.prepare import Run, prepare
from pipelines.report import count_errors

ROWS_PER_FILE = 1 << 20
RESULTS = Path(__file__).parent / "results"


def write_input(folder: Path, num_rows: int) -> None:
    """Write files of short texts."""
    folder.mkdir()
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        rows = range(start, min(start + ROWS_PER_FILE, num_rows))
        table = pa.table({"id": pa.array(rows, pa.int64()), "text": pa.array(["a text"] * len(rows), pa.string())})
        pq.write_table(table, folder / f"{number:04d}.parquet", compression="zstd")


def make_job(folder: Path) -> Job:
    """Return the job over the input."""
    return Job.model_validate(
        {
            "name": "many-units",
            "input": {"path": str(folder / "input")},
            "task": {"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 1},
            "model": {"path": "demo"},
            "backend": {"kind": "fake"},
            "output": {"path": str(folder / "output")},
        }
    )


def planned(job: Job, rows_per_unit: int) -> Run:
    """Prepare the job as a run does, but for the size of its units: so many of the usual size are 50 million rows."""
    run = prepare(job)
    return replace(run, plan=plan_units(run.inputs, rows_per_unit))


def write_units(run: Run, indices: Iterable[int]) -> None:
    """Leave units as a run does, but not synced to the disk one by one: few rows of few units failed."""
    folder = OutputFolder.at(run.folder)
    Path(folder.units).mkdir(exist_ok=True)
    for index in indices:
        unit = run.plan.unit(index)
        errors = [f"bad {index % 7}" if row == index % 100 else None for row in range(unit.num_rows)]
        texts = pa.array([None if error else "word" for error in errors], pa.string())
        ids = pa.array(range(unit.start, unit.stop), pa.int64())
        table = pa.table({"id": ids, "generated_text": texts, "error": pa.array(errors, pa.string())})
        pq.write_table(table, folder.unit(index), compression="zstd", write_page_checksum=True)


class Steps:
    """Times steps, and notes the memory after each."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, float]] = {}
        self._process = psutil.Process()

    def time(self, name: str, step: Callable[[], Any]) -> Any:
        """Do a step and return what it returns."""
        started = time.perf_counter()
        result = step()
        seconds = time.perf_counter() - started
        self.seen[name] = {"seconds": round(seconds, 2), "memory_mb": round(self._process.memory_info().rss / 2**20)}
        print(f"{name}: {self.seen[name]}", flush=True)
        return result


def measure(folder: Path, num_units: int, rows_per_unit: int) -> dict[str, Any]:
    """Plan, resume, reconcile and publish a run of so many units."""
    num_rows = num_units * rows_per_unit
    write_input(folder / "input", num_rows)
    steps, job = Steps(), make_job(folder)
    run = steps.time("plan", lambda: planned(job, rows_per_unit))
    assert run.plan.num_units == num_units, (run.plan.num_units, num_units)
    steps.time("claim", lambda: claim_output(run))
    write_units(run, range(num_units))
    lost = list(range(0, num_units, 10))
    for index in lost:
        Path(OutputFolder.at(run.folder).unit(index)).unlink()
    rerun = steps.time("plan again", lambda: planned(job, rows_per_unit))
    pending = steps.time("resume: find what is missing", lambda: claim_output(rerun))
    assert pending.tolist() == lost
    write_units(run, lost)
    errors = steps.time("reconcile, unit by unit", lambda: count_errors(rerun))
    form = job.output.form
    steps.time("publish", lambda: publish(run.folder, num_units, form, num_rows))
    assert pq.read_table(run.folder, columns=["id"]).column("id").to_pylist() == list(range(num_rows))
    return {"units": num_units, "rows": num_rows, "failed": sum(errors.values()), "steps": steps.seen}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and leave the JSON."""
    parser = argparse.ArgumentParser(description="What a run of very many units costs beside its rows.")
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--rows-per-unit", type=int, default=8)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="gptj-batch-many-"))
    try:
        found = measure(folder, options.units, options.rows_per_unit)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    file = options.json or RESULTS / f"many_units-{options.units}.json"
    file.write_text(json.dumps({**surroundings(1), **found}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
