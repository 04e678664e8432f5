"""Retry: does again the rows of a finished output whose `error` is set, in place."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pyarrow as pa

from gptj_batch.errors import OutputError
from gptj_batch.records.beside import recover
from gptj_batch.records.lease import take_lease
from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.part_reader import count_rows
from gptj_batch.records.retry import RetryFolder
from gptj_batch.records.rewrite import unreadable
from gptj_batch.records.store import BucketPath
from jobs.failures import stop_on_signals
from jobs.limits import TimeLimits
from jobs.run import complete
from pipelines.config import Job
from pipelines.ledger import dataset_of, read_ledger, real_root
from pipelines.prepare import prepare
from pipelines.report import MAX_REASONS, Report, count_errors_of_parts, read_report, write_report_of
from pipelines.report_page import write_page
from pipelines.retry import Finished
from pipelines.run_place import final_folder, show

# What a report says of its last run alone; the rest is the whole output's.
_OF_THE_RETRY = (
    *("truncated_this_run", "rows_this_run", "prompt_tokens_this_run", "generated_tokens_this_run"),
    *("seconds", "tokens_per_s", "started"),
)


def retry(
    output: str, overrides: Sequence[str] = (), address: str | None = None, limits: TimeLimits | None = None
) -> int:
    """Do the failed rows of an output again and return the exit code, 0 or 3, that the whole output has then.

    overrides: settings that do not change what a row's result is, such as `replicas.max` or `errors.row_timeout_s`

    Raises GPTJBatchError, or Stopped at a signal or a limit; the same command then goes on. The output stays whole.
    """
    with stop_on_signals(), _answers_of(output):
        _settle(output)
        finished = Finished.read(output, overrides)
        finished.check_retryable()
        with _held(finished.job.output.path) as check:
            finished = Finished.read(output, overrides)  # again, as nobody changes it from here on
            report = _read_report(finished.job)
            folder = RetryFolder(finished.job.output.path)
            if not folder.is_open and not finished.take_out(folder):
                print(f"Nothing to do: no row of {finished.job.output.path} failed.", file=sys.stderr)
                report = _counted_again(finished, report)
            else:
                run = prepare(finished.retry_job(folder.num_rows))
                finished.check_same(run)
                print(f"doing {folder.num_rows:,} failed rows of {finished.job.output.path} again", file=sys.stderr)
                done = complete(run, address, limits)
                check()
                folder.put_back(finished.added_columns(), finished.job.output.form, check)
                report = _counted_again(finished, report, done)
                folder.remove()
            _tell_dataset(finished.job.output.path)
        report = report.judged(finished.job.errors)
        print(report.summary())
        return report.exit_code


@contextmanager
def _answers_of(output: str) -> Iterator[None]:
    """Let what a bucket says when it does not answer, or refuses, be an OutputError with the next step."""
    try:
        yield
    except OSError as error:
        root = OutputFolder.at(output).root
        if not isinstance(root, BucketPath) or root.bucket not in str(error):
            raise
        raise not_written(root, error) from error


def _settle(output: str) -> None:
    """Finish an overwriting in a bucket that was cut off: which rows failed is not known before."""
    if OutputFolder.at(output).in_bucket:
        recover(output)


@contextmanager
def _held(output: str) -> Iterator[Callable[[], None]]:
    """Hold the output, and the dataset that it is a run of: the next run of that may take parts away.

    Yields what raises OutputInUseError once one of them is another's. Raises OutputInUseError where one is.
    """
    with ExitStack() as held:
        dataset = dataset_of(output)
        outputs = [*([] if dataset is None else [str(dataset)]), output]
        leases = [held.enter_context(take_lease(each)) for each in outputs]

        def check() -> None:
            for lease in leases:
                lease.check()

        yield check


def _tell_dataset(output: str) -> None:
    """Let the report of the dataset be the one that the retry wrote, if the output is its last run with rows."""
    if (dataset := dataset_of(output)) is None:
        return
    entries = [entry for entry in read_ledger(dataset).entries if entry.rows]
    run = real_root(output)
    if entries and str(run) == final_folder(str(dataset), entries[-1].run, entries[-1].layout):
        show(OutputFolder.at(dataset), OutputFolder.at(run))


def _read_report(job: Job) -> Report:
    report = read_report(job.output.path)
    if report is None:
        raise OutputError(f"output.path: {job.output.path} has no run.json that can be read; run its job again first")
    return replace(report, output=job.output.path)  # where it is now: it may have been moved


def _counted_again(finished: Finished, before: Report, retried: Report | None = None) -> Report:
    """Write the report of the whole output, its rows and errors counted from the parts as they are now.

    retried: what was done again; without it, the report is written only where it is another one
    """
    job, output = finished.job, finished.job.output.path
    errors, rows = count_errors_of_parts(output, finished.error_column), _num_rows(job)
    failed = sum(errors.values())
    if retried is None and (rows, failed) == (before.rows, before.failed):
        return before
    report = replace(
        before,
        rows=rows,
        done=rows - failed,
        failed=failed,
        errors=dict(sorted(errors.items(), key=lambda item: -item[1])[:MAX_REASONS]),
        **({} if retried is None else {name: getattr(retried, name) for name in _OF_THE_RETRY}),
    ).judged(job.errors)
    write_report_of(job, report, output)
    write_page(report)
    return report


def _num_rows(job: Job) -> int:
    """Return the rows of the parts that are there. Raises OutputError."""
    num_rows = 0
    for part in OutputFolder.at(job.output.path).parts():
        try:
            num_rows += count_rows(part, job.output.form.ending)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(part, error) from error
    return num_rows
