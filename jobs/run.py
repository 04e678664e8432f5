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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gptj_batch.errors import GPTJBatchError, OutputError, OutputInUseError
from gptj_batch.records.attempts import Attempts, forget_attempts
from gptj_batch.records.lease import Fence, take_lease
from gptj_batch.records.progress import pending_units
from gptj_batch.records.publish import is_complete, publish
from gptj_batch.records.unchanged import check_unchanged
from gptj_batch.stages.resources import plan_replicas
from gptj_batch.tasks.base import ERROR_COLUMN, FREE_TEXT_COLUMNS
from jobs.cluster import connected, node_resources
from jobs.failures import Stopped, as_ours, ending, stop_on_signals
from jobs.limits import TimeLimits
from pipelines.config import Job, load_job
from pipelines.no_rows import write_no_rows
from pipelines.prepare import Run, check_output, claim_output, prepare
from pipelines.progress import Progress
from pipelines.report import Report, read_report, write_failure, write_report
from pipelines.report_page import page_path, write_page


def run_job(job: Job, address: str | None = None, limits: TimeLimits | None = None) -> int:
    """Run a job to its end and return the exit code: 0, or 3 where more failed than `errors.max_failed_rows` allows.

    Raises GPTJBatchError, or Stopped at a signal or a limit; a rerun of the same job then goes on where this one ended.
    """
    with stop_on_signals():
        report = complete(prepare(job), address, limits)
        print(report.summary())
        return report.exit_code


def complete(run: Run, address: str | None = None, limits: TimeLimits | None = None) -> Report:
    """Do what is missing of a run, if anything is, and return its report.

    Raises OutputInUseError where another run that is alive has the output, and what `run_job` raises.
    """
    for file in run.inputs.skipped:
        print(f"skipped: {file}", file=sys.stderr)
    report = _finished(run)
    if report is not None:
        return report
    with take_lease(run.job.output.path) as lease:
        pending = claim_output(run)
        try:
            return _execute(run, pending, address, lease.fence, limits or TimeLimits())
        except OutputInUseError:
            raise  # the output is another run's by now, and so is its run.json
        except BaseException as error:
            write_failure(run, *ending(error))
            raise


def _finished(run: Run) -> Report | None:
    """Return the report of an output that is complete and stays; None where there is something to do.

    Raises ConfigError where the output is not for this job.
    """
    path = run.job.output.path
    check_output(run)
    if run.job.output.on_exists == "overwrite" or not is_complete(path):
        return None
    claim_output(run)
    if (report := read_report(path)) is None:
        return None
    print(f"Nothing to do: {path} is complete.", file=sys.stderr)
    # by this job's limit, which may be another one than that of the run that made it
    report = report.judged(run.job.errors)
    if not page_path(report).exists():  # the run that made it was cut off between its last two steps
        write_pages(run, report)
    return report


def _execute(run: Run, pending: NDArray[np.int32], address: str | None, fence: Fence, limits: TimeLimits) -> Report:
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
        attempts = Attempts(fence.output, fence.token)
        try:
            with limits.kept(), connected(address), _failure_noted(run):
                facts = _run_units(run, pending, progress, fence, limits)
        except BaseException:
            attempts.forget_running()
            raise
        check_unchanged(run.inputs.files)
    missing = pending_units(job.output.path, run.plan)
    if len(missing):
        raise OutputError(f"{len(missing)} of {run.plan.num_units} units were not written; run the same job again")
    report = Report.of_units(run, progress.counts, progress.seconds, started, facts)
    fence.check()
    write_report(run, report)
    publish(
        job.output.path,
        run.plan.num_units,
        job.output.target_file_mb * 2**20,
        job.output.compression,
        run.plan.num_rows,
    )
    forget_attempts(job.output.path)
    write_pages(run, report)
    return report


@contextmanager
def _failure_noted(run: Run) -> Iterator[None]:
    """Write down how the run ends before Ray is shut down: `ray job stop` gives three seconds for all of it."""
    try:
        yield
    except Stopped as stopped:
        write_failure(run, *ending(stopped))
        raise


def write_pages(run: Run, report: Report) -> None:
    """Write the report as a page. Raises OutputError."""
    shown = [name for name in (*run.task.adds.names, ERROR_COLUMN) if name not in FREE_TEXT_COLUMNS]
    write_page(report, [run.job.output.prefix + name for name in shown])


def _run_units(
    run: Run, pending: NDArray[np.int32], progress: Progress, fence: Fence, limits: TimeLimits
) -> dict[str, Any]:
    """Execute the pipeline, following its counts; return what the replicas say of themselves."""
    from pipelines.build import build  # imports Ray; see jobs.cluster

    replicas_wanted = run.job.replicas
    replicas = plan_replicas(
        node_resources(),
        replicas_wanted.min,
        replicas_wanted.max,
        replicas_wanted.gpus_each,
        replicas_wanted.cpus_each,
    )
    limits.use_gpus(replicas.num_gpus * min(replicas.initial_replicas, len(pending)))
    facts: dict[str, Any] = {}
    try:
        for table in build(run, pending, replicas, fence).iter_batches(batch_size=None, batch_format="pyarrow"):
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
