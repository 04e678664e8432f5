"""Run a job: load its configuration, connect to Ray, build, execute, report.

`python jobs/run.py CONFIG.yaml a.b=c` is `gptj-batch run`, for
`ray job submit --working-dir . -- python jobs/run.py CONFIG.yaml a.b=c`.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Started as a file: the folder above it is where the packages are, installed or not.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gptj_batch.errors import ConfigError, GPTJBatchError, OutputInUseError
from gptj_batch.records.attempts import Attempts
from gptj_batch.records.beside import change_places, recover
from gptj_batch.records.lease import Fence, take_lease
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.progress import clean
from gptj_batch.records.publish import is_complete
from gptj_batch.records.unchanged import check_unchanged
from gptj_batch.stages.resources import ReplicaPlan, plan_replicas
from jobs.cluster import connected
from jobs.cluster_watch import EXIT_CODE as EXIT_LOST
from jobs.cluster_watch import OWN_PATIENCE_S, PATIENCE_S, cluster_watched
from jobs.failures import Stopped, ending, stop_on_signals
from jobs.limits import TimeLimits
from jobs.waiting import waiting_told, why_waiting
from pipelines.backend_choice import check_here, choose_backend, gpus_of_replica, memory_plan, with_backend
from pipelines.breaker import Breaker, was_stopped
from pipelines.cluster import free_resources, head_address, named_address, node_resources, raylet_process
from pipelines.config import Job, load_job
from pipelines.destination import check_output, claim_output, placed
from pipelines.finish import finish
from pipelines.ledger import Rescore
from pipelines.no_rows import write_no_rows
from pipelines.prepare import Run, prepare
from pipelines.progress import Counts, Progress
from pipelines.ray_errors import as_ours
from pipelines.report import Report, read_report, write_failure
from pipelines.report_page import page_path, write_page


def run_job(
    job: Job, address: str | None = None, limits: TimeLimits | None = None, rescore: Rescore | None = None
) -> int:
    """Run a job to its end and return the exit code: 0, or 3 where more failed than `errors.max_failed_rows` allows.

    rescore: of an incremental job, see `jobs.incremental`

    Raises GPTJBatchError, or Stopped at a signal or a limit; a rerun of the same job then goes on where this one ended.
    """
    if job.input.incremental:
        from jobs.incremental import run_incremental  # which is made of what is here

        return run_incremental(job, address, limits, rescore)
    if rescore is not None:
        raise ConfigError("--rescore: it is for incremental runs; add --incremental, or leave it out")
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
    output = run.job.output.path
    recover(output)
    report = _finished(run)
    if report is not None:
        return report
    if named_address(address) == "local":
        check_here(run.job)
    with take_lease(output) as lease:
        run = placed(run)
        if run.is_beside and was_stopped(run.folder):
            clean(run.folder)  # to overwrite is what the breaker says: this asks for it again
        pending = claim_output(run)
        try:
            return _put_in_place(run) or _execute(run, pending, address, lease.fence, limits or TimeLimits())
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
    if not OutputFolder.at(path).store.exists(
        page_path(report)
    ):  # the run that made it was cut off between its last two steps
        write_page(report)
    return report


def _put_in_place(run: Run) -> Report | None:
    """Return the report of a complete output that a run left beside the one that it was to overwrite, now in its place.

    None where there is none.
    """
    if not (run.is_beside and is_complete(run.folder)) or (report := read_report(run.folder)) is None:
        return None
    change_places(run.job.output.path)
    print(f"Nothing to do: {run.job.output.path} is complete.", file=sys.stderr)
    report = report.judged(run.job.errors)
    write_page(report)
    return report


def _execute(run: Run, pending: NDArray[np.int32], address: str | None, fence: Fence, limits: TimeLimits) -> Report:
    """Do the pending units, check that none is missing, publish the output and its report."""
    started = time.time()
    num_pending_rows = sum(run.plan.unit(int(index)).num_rows for index in pending)
    progress = Progress(num_pending_rows, sys.stderr)
    facts: dict[str, Any] = {}
    if len(pending) and not num_pending_rows:
        write_no_rows(run)
    elif len(pending):
        breaker = Breaker.of(run, run.plan.num_rows - num_pending_rows)
        breaker.check(Counts())
        _tell_start(run, len(pending), num_pending_rows)
        attempts = Attempts(fence.output, fence.token)
        try:
            with limits.kept(), connected(address) as is_own, _failure_noted(run, is_own):
                facts = _run_units(run, pending, progress, fence, limits, breaker)
        except BaseException:
            attempts.forget_running()
            raise
        check_unchanged(run.inputs.files)
    return finish(run, progress.counts, progress.seconds, started, facts, fence)


@contextmanager
def _failure_noted(run: Run, own_cluster: bool) -> Iterator[None]:
    """Write down how the run ends before Ray is shut down: `ray job stop` gives three seconds for all of it.

    Where the cluster's head or this driver's raylet is gone, that is written down too, and ends the process.
    """
    patience_s = OWN_PATIENCE_S if own_cluster else PATIENCE_S
    try:
        with cluster_watched(head_address(), raylet_process(), patience_s, partial(write_failure, run, EXIT_LOST)):
            yield
    except Stopped as stopped:
        write_failure(run, *ending(stopped))
        raise


def _run_units(
    run: Run, pending: NDArray[np.int32], progress: Progress, fence: Fence, limits: TimeLimits, breaker: Breaker
) -> dict[str, Any]:
    """Execute the pipeline, following its counts; return what the replicas say of themselves."""
    from pipelines.build import build  # imports Ray; see jobs.cluster

    run, replicas = _on_cluster(run)
    limits.use_gpus(replicas.num_gpus * min(replicas.initial_replicas, len(pending)))
    facts: dict[str, Any] = {}
    try:
        tables = build(run, pending, replicas, fence).iter_batches(batch_size=None, batch_format="pyarrow")
        with waiting_told(progress, lambda begun: why_waiting(replicas, node_resources(), free_resources(), begun)):
            for table in tables:
                assert isinstance(table, pa.Table)
                for counts in table.to_pylist():
                    progress.add(counts)
                    breaker.check(progress.counts)
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
