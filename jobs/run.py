"""Run a job: load its configuration, connect to Ray, build, execute, report.

`python jobs/run.py CONFIG.yaml a.b=c` is `gptj-batch run`, for
`ray job submit --working-dir . -- python jobs/run.py CONFIG.yaml a.b=c`.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Started as a file: the folder above it is where the packages are, installed or not.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gptj_batch.errors import GPTJBatchError, OutputError
from gptj_batch.records.progress import pending_units
from gptj_batch.records.publish import is_complete, publish
from gptj_batch.stages.resources import ReplicaPlan, plan_replicas
from gptj_batch.tasks.base import ERROR_COLUMN, FREE_TEXT_COLUMNS
from jobs.cluster import connected, node_resources
from jobs.failures import Stopped, as_ours, ending, stop_on_signals
from pipelines.backend_choice import choose_backend, gpus_of_replica, memory_plan, with_backend
from pipelines.config import Job, load_job
from pipelines.no_rows import write_no_rows
from pipelines.prepare import Run, claim_output, prepare
from pipelines.progress import Progress
from pipelines.report import Report, read_report, write_failure, write_report
from pipelines.report_page import page_path, write_page


def run_job(job: Job, address: str | None = None) -> int:
    """Run a job to its end and return the exit code: 0, or 3 where more failed than `errors.max_failed_rows` allows.

    Raises GPTJBatchError; a rerun of the same job then goes on where this one ended.
    """
    with stop_on_signals():
        run = prepare(job)
        for file in run.inputs.skipped:
            print(f"skipped: {file}", file=sys.stderr)
        pending = claim_output(run)
        if is_complete(run.job.output.path) and (report := read_report(run.job.output.path)) is not None:
            print(f"Nothing to do: {run.job.output.path} is complete.", file=sys.stderr)
            # by this job's limit, which may be another one than that of the run that made it
            report = report.judged(run.job.errors)
            if not page_path(report).exists():  # the run that made it was cut off between its last two steps
                _write_page(run, report)
        else:
            try:
                report = _execute(run, pending, address)
            except BaseException as error:
                write_failure(run, *ending(error))
                raise
        print(report.summary())
        return report.exit_code


def _execute(run: Run, pending: NDArray[np.int32], address: str | None) -> Report:
    """Do the pending units, check that none is missing, publish the output and its report."""
    started = time.time()
    job = run.job
    num_pending_rows = sum(run.plan.unit(int(index)).num_rows for index in pending)
    progress = Progress(num_pending_rows, sys.stderr)
    facts: dict[str, Any] = {}
    if len(pending) and not num_pending_rows:
        write_no_rows(run)
    elif len(pending):
        _tell_start(run, len(pending), num_pending_rows)
        with connected(address):
            facts = _run_units(run, pending, progress)
    missing = pending_units(job.output.path, run.plan)
    if len(missing):
        raise OutputError(f"{len(missing)} of {run.plan.num_units} units were not written; run the same job again")
    report = Report.of_units(run, progress.counts, progress.seconds, started, facts)
    write_report(run, report)
    publish(
        job.output.path,
        run.plan.num_units,
        job.output.target_file_mb * 2**20,
        job.output.compression,
        run.plan.num_rows,
    )
    _write_page(run, report)
    return report


def _write_page(run: Run, report: Report) -> None:
    shown = [name for name in (*run.task.adds.names, ERROR_COLUMN) if name not in FREE_TEXT_COLUMNS]
    write_page(report, [run.job.output.prefix + name for name in shown])


def _run_units(run: Run, pending: NDArray[np.int32], progress: Progress) -> dict[str, Any]:
    """Execute the pipeline, following its counts; return what the replicas say of themselves."""
    from pipelines.build import build  # imports Ray; see jobs.cluster

    run, replicas = _on_cluster(run)
    facts: dict[str, Any] = {}
    try:
        for table in build(run, pending, replicas).iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)
            for counts in table.to_pylist():
                progress.add(counts)
                facts = json.loads(counts["backend"])
    except Exception as error:
        ours = as_ours(error)
        if ours is None:
            raise
        raise ours from error
    progress.finish()
    return facts


def _on_cluster(run: Run) -> tuple[Run, ReplicaPlan]:
    """Choose the engine and plan its replicas on the cluster that is there; the run has that engine, and is told so."""
    nodes, wanted = node_resources(), run.job.replicas
    has_gpu = wanted.gpus_each != 0 and any(node.get("GPU", 0) > 0 for node in nodes)
    choice = choose_backend(run.job, has_gpu)
    print(choice, file=sys.stderr)
    if choice.kind == "vllm" and has_gpu:
        print(memory_plan(run.job, run.model.folder), file=sys.stderr)
    gpus_each = gpus_of_replica(run.job, choice, has_gpu)
    replicas = plan_replicas(nodes, wanted.min, wanted.max, gpus_each, wanted.cpus_each)
    return replace(run, job=with_backend(run.job, choice.kind)), replicas


def _tell_start(run: Run, num_units: int, num_rows: int) -> None:
    done = run.plan.num_rows - num_rows
    resumed = f" ({done:,} were done before)" if done else ""
    print(
        f"{run.job.name}: {num_rows:,} rows of {len(run.inputs.files):,} files{resumed}, in {num_units:,} units, "
        f"model {run.job.model.path}; starting",
        file=sys.stderr,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gptj-batch run` with these arguments."""
    from jobs.cli import main as cli_main

    return cli_main(["run", *(sys.argv[1:] if arguments is None else arguments)])


__all__ = ["GPTJBatchError", "Stopped", "load_job", "main", "run_job"]

if __name__ == "__main__":
    sys.exit(main())
