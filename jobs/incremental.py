"""An incremental run: what is new of the input is done and added to the output, and the ledger says what went where."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gptj_batch.errors import ConfigError, InputError, OutputInUseError
from gptj_batch.model_folder import read_facts
from gptj_batch.records.content import hash_files
from gptj_batch.records.lease import Lease, take_lease
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.progress import contents, differences
from gptj_batch.records.read import InputFiles, inspected, with_one_schema
from jobs.failures import ending, stop_on_signals
from jobs.limits import TimeLimits
from jobs.run import complete
from pipelines.apart import check_apart
from pipelines.backend_choice import check_backend
from pipelines.breaker import was_stopped
from pipelines.config import Job
from pipelines.incremental import (
    Changes,
    changes,
    check_same,
    check_settings,
    column_changes,
    find,
    known_columns,
    layout,
    shown,
)
from pipelines.last_run import complaint
from pipelines.ledger import Ledger, Rescore, append, is_incremental, read_ledger
from pipelines.new_run import NewRun
from pipelines.prepare import result_settings
from pipelines.report import EXIT_DONE, EXIT_TOO_MANY_FAILED, write_failure
from pipelines.run_place import drop_run, open_run, read_todo, run_name, settle, work_folder, write_todo


def run_incremental(
    job: Job, address: str | None = None, limits: TimeLimits | None = None, rescore: Rescore | None = None
) -> int:
    """Do the files of a job's input that are new or changed, and return the exit code.

    rescore: what becomes of the results that are there, where the settings are other ones than they were made with

    0: done, or nothing to do. 3: more failed than `errors.max_failed_rows` allows, files were skipped, or the rows
    drifted beyond `drift.max_psi`; the run is in the ledger then, and while no other has rows, 3 is the answer.

    Raises GPTJBatchError, or Stopped at a signal or a limit; the next run then goes on where this one ended.
    """
    with stop_on_signals():
        check_settings(job)
        check_backend(job)
        check_apart(job)
        folder = OutputFolder.at(job.output.path)
        folder.store.check(folder.root)
        _check_owner(job)
        settings = result_settings(job, read_facts(job.model.path, job.model.revision, job.task.head))
        with take_lease(job.output.path) as lease:
            _check_owner(job)  # another run may have made it since
            # as JSON has them, which is how the ledger has those of the runs before
            kept = _Kept(job, json.loads(json.dumps(settings)), lease, address, limits or TimeLimits())
            return kept.bring_up_to_date(rescore)


def _check_owner(job: Job) -> None:
    """Raise ConfigError where the output is there and incremental runs do not keep it."""
    path, folder = job.output.path, OutputFolder.at(job.output.path)
    has_results = folder.store.exists(folder.plan) or folder.store.exists(folder.success) or bool(folder.parts())
    is_other = contents(path) == "foreign" or (contents(path) == "ours" and has_results)
    if is_other and not is_incremental(path):
        raise ConfigError(
            f"output.path: {path} is not kept by incremental runs; choose another path, or run this job without "
            "--incremental (input.incremental)"
        )


@dataclass(frozen=True)
class _Kept:
    """An output that is this process's to bring up to date."""

    job: Job
    settings: Mapping[str, Any]
    lease: Lease
    address: str | None
    limits: TimeLimits

    @property
    def output(self) -> str:
        return str(OutputFolder.at(self.job.output.path).root)

    def bring_up_to_date(self, rescore: Rescore | None) -> int:
        """Finish what was begun, then do what is new; see `run_incremental`."""
        code = EXIT_DONE
        while True:
            ledger = read_ledger(self.output)
            settle(self.output, ledger)
            new = self._planned(ledger, rescore)
            code = max(code, self._do(ledger, new))
            if not new.is_resumed:
                return code
            rescore = None  # what came since the interrupted run began is another run's

    def _planned(self, ledger: Ledger, rescore: Rescore | None) -> NewRun:
        """Return the run that was interrupted, if it can be gone on with, or a new one. Raises ConfigError."""
        make = partial(NewRun, output=self.output, job=self.job, settings=self.settings)
        begun = open_run(self.output, ledger)
        todo = None if begun is None else read_todo(self.output, begun)
        if begun is not None and todo is not None and self._goes_on(begun, todo, rescore):
            rescore = todo["rescore"]  # which stays to be done, also where the run is begun anew
            found = changes(find(self.job, ledger), ledger, hash_files, rescore)
            if (resumed := _resumed(found, todo)) is not None:
                return make(name=begun, changes=resumed, rescore=rescore, is_resumed=True)
            _tell(f"run {begun} was interrupted, and its files are not what they were: it is begun anew")
        check_same(ledger, self.job, self.settings, rescore)
        found = changes(find(self.job, ledger), ledger, hash_files, rescore)
        return make(name=run_name(time.time(), ledger), changes=found, rescore=rescore, instead_of=begun)

    def _goes_on(self, begun: str, todo: Mapping[str, Any], rescore: Rescore | None) -> bool:
        before = {"layout": todo["layout"], **todo["settings"]}
        other = differences(before, {"layout": layout(self.job), **self.settings})
        if other and rescore is None:
            raise ConfigError(
                f"output.path: {self.job.output.path} has a run that was interrupted, {begun}, with other settings:\n"
                f"  {shown(other)}\nSet them back to go on with it, or drop what it did with --rescore new (new files "
                "only) or --rescore all (every file)"
            )
        if rescore is not None and was_stopped(work_folder(self.output, begun)):
            return False  # the breaker's message says so
        return not other and rescore in (None, todo["rescore"])

    def _do(self, ledger: Ledger, new: NewRun) -> int:
        good, bad = inspected([(each.file, each.format) for each in new.changes.todo], self.job.errors.bad_files)
        for file in bad:
            _tell(f"skipped: {file}")
        if not good:
            return self._note(ledger, new.doing([]), tuple(file.path for file in bad))
        known = known_columns(ledger) if new.rescore != "all" else []
        inputs = with_one_schema(good, bad, known)
        if not inputs.schema.names:
            raise InputError(f"input.path: {good[0].path} and all other new files have no columns")
        if other := column_changes(known, inputs.schema):
            _tell(f"the columns are not those of the runs before:\n  {shown(other)}")
        done = {file.path for file in good}
        return self._run(ledger, new.doing([each for each in new.changes.todo if each.file.path in done]), inputs)

    def _note(self, ledger: Ledger, new: NewRun, skipped: tuple[str, ...]) -> int:
        """Write down what needs no run, if anything is worth it, and end as the last run with rows stands."""
        is_accepted = ledger.last is not None and bool(differences(ledger.last.settings, self.settings))
        is_accepted |= new.rescore is not None and complaint(self.output, ledger, self.job) is not None
        if new.changes.is_noted or is_accepted:
            entry = replace(new.entry(ledger), skipped=skipped)
            self.lease.check()
            append(self.output, entry)
            ledger = ledger.with_entry(entry)
            settle(self.output, ledger)
        self._drop(new.instead_of)
        _tell(f"Nothing to do: {self.job.output.path} is up to date ({new.changes.words()}).")
        reasons = [f"{len(skipped):,} input files cannot be read and were skipped"] if skipped else []
        if (beyond := complaint(self.output, ledger, self.job)) is not None:
            reasons.append(beyond)
        for reason in reasons:
            _tell(f"{reason}: exit code {EXIT_TOO_MANY_FAILED}")
        return EXIT_TOO_MANY_FAILED if reasons else EXIT_DONE

    def _drop(self, begun: str | None) -> None:
        """Remove a run that is not gone on with, late: until then, what it was to do is known to the next process."""
        if begun is not None:
            self.lease.check()
            drop_run(self.output, begun)

    def _run(self, ledger: Ledger, new: NewRun, inputs: InputFiles) -> int:
        run = new.prepared(inputs)
        if not new.is_resumed:
            self._drop(new.instead_of)
            write_todo(self.output, new.name, new.todo())
        _tell(f"run {new.name}{' goes on' if new.is_resumed else ''}: {new.changes.words()}")
        try:
            entry, report, drift = new.finished(ledger, run, complete(run, self.address, self.limits))
            self.lease.check()
            append(self.output, entry)
            settle(self.output, ledger.with_entry(entry))
        except OutputInUseError:
            raise  # the output is another run's by now
        except BaseException as error:
            write_failure(run, *ending(error))
            raise
        if drift is not None:
            print(drift.line())
        print(report.summary())
        return report.exit_code


def _resumed(found: Changes, todo: Mapping[str, Any]) -> Changes | None:
    """Return the changes with an interrupted run's files only; None where they are not what they were."""
    there = {json.dumps(each.stamp(), sort_keys=True): each for each in found.todo}
    wanted = [json.dumps(stamp, sort_keys=True) for stamp in todo["files"]]
    if not wanted or not set(wanted) <= there.keys():
        return None
    return found.only([there[stamp] for stamp in wanted])


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
