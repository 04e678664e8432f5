"""Retry: does again the rows of a finished output whose `error` is set, in place."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import pyarrow.parquet as pq

from gptj_batch.errors import OutputError
from gptj_batch.records.lease import take_lease
from gptj_batch.records.retry import RetryFolder
from jobs.failures import stop_on_signals
from jobs.limits import TimeLimits
from jobs.run import complete
from pipelines.config import Job
from pipelines.prepare import Run, prepare
from pipelines.report import MAX_REASONS, Report, count_errors, read_report, write_report
from pipelines.report_page import write_page
from pipelines.retry import Finished


def retry(
    output: str, overrides: Sequence[str] = (), address: str | None = None, limits: TimeLimits | None = None
) -> int:
    """Do the failed rows of an output again and return the exit code, 0 or 3, that the whole output has then.

    overrides: settings that do not change what a row's result is, such as `replicas.max` or `errors.row_timeout_s`

    Raises GPTJBatchError, or Stopped at a signal or a limit; the same command then goes on. The output stays whole.
    """
    with stop_on_signals():
        finished = Finished.read(output, overrides)
        finished.check_retryable()
        with take_lease(finished.job.output.path) as lease:
            report = _read_report(finished.job)
            folder, added = RetryFolder(finished.job.output.path), finished.added_columns()
            if not folder.is_open and not finished.take_out(folder):
                print(f"Nothing to do: no row of {finished.job.output.path} failed.", file=sys.stderr)
            else:
                num_rows = sum(pq.read_metadata(file).num_rows for file in folder.rows.iterdir())
                run = prepare(finished.retry_job(num_rows))
                finished.check_same(run)
                print(f"doing {num_rows:,} failed rows of {finished.job.output.path} again", file=sys.stderr)
                done = complete(run, address, limits)
                lease.check()
                folder.put_back(added, finished.job.output.form, lease.check)
                report = _counted_again(replace(run, job=finished.job), report, done)
                folder.remove()
        report = report.judged(finished.job.errors)
        print(report.summary())
        return report.exit_code


def _read_report(job: Job) -> Report:
    report = read_report(job.output.path)
    if report is None:
        raise OutputError(f"output.path: {job.output.path} has no run.json that can be read; run its job again first")
    return replace(report, output=job.output.path)  # where it is now: it may have been moved


def _counted_again(run: Run, before: Report, retried: Report) -> Report:
    """Write the report of the whole output, its errors counted from the parts as they are now."""
    errors = count_errors(run)
    failed = sum(errors.values())
    report = replace(
        before,
        done=before.rows - failed,
        failed=failed,
        errors=dict(sorted(errors.items(), key=lambda item: -item[1])[:MAX_REASONS]),
        truncated_this_run=retried.truncated_this_run,
        rows_this_run=retried.rows_this_run,
        prompt_tokens_this_run=retried.prompt_tokens_this_run,
        generated_tokens_this_run=retried.generated_tokens_this_run,
        seconds=retried.seconds,
        tokens_per_s=retried.tokens_per_s,
        started=retried.started,
    ).judged(run.job.errors)
    write_report(run, report)
    write_page(report)
    return report
