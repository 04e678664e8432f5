"""An incremental run: what is new of the input is done and added to the output, and the ledger says what went where."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptj_batch.errors import ConfigError, InputError, OutputInUseError
from gptj_batch.model_folder import read_facts
from gptj_batch.records.content import hash_files
from gptj_batch.records.lease import Lease, take_lease
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.progress import contents, differences
from gptj_batch.records.publish import published_groups
from gptj_batch.records.read import InputFiles, inspected, with_one_schema
from jobs.failures import ending, stop_on_signals
from jobs.limits import TimeLimits
from jobs.run import complete
from pipelines.backend_choice import check_backend
from pipelines.config import Job
from pipelines.drift import Drift, drift_from
from pipelines.incremental import (
    Changes,
    changes,
    check_same,
    check_settings,
    column_changes,
    find,
    known_columns,
    layout,
    schema_text,
    shown,
)
from pipelines.ledger import DoneFile, Entry, Ledger, Rescore, append, is_incremental, read_ledger
from pipelines.prepare import Run, check_apart, prepare_on, result_settings
from pipelines.profile import Profile, Sample, read_sample
from pipelines.profiles import last_profile, write_profile
from pipelines.report import EXIT_DONE, EXIT_TOO_MANY_FAILED, Report, write_failure, write_report
from pipelines.report_page import write_page
from pipelines.run_place import (
    DRIFT_FILE,
    RUN_COLUMN,
    drop_run,
    final_folder,
    final_names,
    open_run,
    read_todo,
    run_name,
    settle,
    work_folder,
    write_todo,
)


def run_incremental(
    job: Job, address: str | None = None, limits: TimeLimits | None = None, rescore: Rescore | None = None
) -> int:
    """Do the files of a job's input that are new or changed, and return the exit code.

    rescore: what becomes of the results that are there, where the settings are other ones than they were made with

    0: done, or nothing to do. 3: more failed than `errors.max_failed_rows` allows, files were skipped, or the rows
    drifted beyond `drift.max_psi`; the run is in the ledger then. Raises GPTJBatchError, or Stopped at a signal or a
    limit; the next run then goes on where this one ended.
    """
    with stop_on_signals():
        check_settings(job)
        check_backend(job)
        check_apart(job)
        _check_owner(job)
        settings = result_settings(job, read_facts(job.model.path, job.model.revision, job.task.head))
        with take_lease(job.output.path) as lease:
            kept = _Kept(job, json.loads(json.dumps(settings)), lease, address, limits or TimeLimits())
            return kept.bring_up_to_date(rescore)


def _check_owner(job: Job) -> None:
    """Raise ConfigError where the output is there and incremental runs do not keep it."""
    path, folder = job.output.path, OutputFolder.at(job.output.path)
    has_results = folder.plan.exists() or folder.success.exists() or bool(folder.parts())
    is_other = contents(path) == "foreign" or (contents(path) == "ours" and has_results)
    if is_other and not is_incremental(path):
        raise ConfigError(
            f"output.path: {path} is not kept by incremental runs; choose another path, or run this job without "
            "--incremental (input.incremental)"
        )


@dataclass(frozen=True)
class _Plan:
    """A run that is to be done: its name, and all that is known of it before."""

    name: str
    changes: Changes
    rescore: Rescore | None
    is_resumed: bool


class _Kept:
    """An output that is this process's to bring up to date."""

    def __init__(
        self, job: Job, settings: Mapping[str, Any], lease: Lease, address: str | None, limits: TimeLimits
    ) -> None:
        self._job, self._settings, self._lease = job, settings, lease
        self._address, self._limits = address, limits
        self._output = str(OutputFolder.at(job.output.path).root)

    def bring_up_to_date(self, rescore: Rescore | None) -> int:
        """Finish what was begun, then do what is new; see `run_incremental`."""
        code = EXIT_DONE
        while True:
            ledger = read_ledger(self._output)
            settle(self._output, ledger)
            plan = self._plan(ledger, rescore)
            code = max(code, self._do(ledger, plan))
            if not plan.is_resumed:
                return code
            rescore = None  # what came since the interrupted run began is another run's

    def _plan(self, ledger: Ledger, rescore: Rescore | None) -> _Plan:
        begun = open_run(self._output, ledger)
        todo = None if begun is None else read_todo(self._output, begun)
        if begun is not None and todo is not None:
            other = self._other_settings(todo)
            if other and rescore is None:
                raise ConfigError(
                    f"output.path: {self._job.output.path} has a run that was interrupted, {begun}, with other "
                    f"settings:\n  {shown(other)}\nSet them back to go on with it, or drop what it did with --rescore "
                    "new (new files only) or --rescore all (every file)"
                )
            if not other and rescore in (None, todo["rescore"]):
                found = changes(find(self._job), ledger, hash_files, todo["rescore"])
                if (resumed := _resumed(found, todo)) is not None:
                    return _Plan(begun, resumed, todo["rescore"], is_resumed=True)
                _tell(f"run {begun} was interrupted, and its files are not what they were: it is begun anew")
        if begun is not None:
            drop_run(self._output, begun)
        check_same(ledger, self._job, self._settings, rescore)
        found = changes(find(self._job), ledger, hash_files, rescore)
        return _Plan(run_name(time.time(), ledger), found, rescore, is_resumed=False)

    def _other_settings(self, todo: Mapping[str, Any]) -> list[str]:
        before = {"layout": todo["layout"], **todo["settings"]}
        return differences(before, {"layout": layout(self._job), **self._settings})

    def _do(self, ledger: Ledger, plan: _Plan) -> int:
        inputs, skipped = self._inputs(ledger, plan)
        for file in skipped:
            _tell(f"skipped: {file}")
        if inputs is None:
            return self._note(ledger, plan, skipped)
        return self._run(ledger, plan, inputs)

    def _inputs(self, ledger: Ledger, plan: _Plan) -> tuple[InputFiles | None, list[str]]:
        """Return the files to do as they describe themselves; None where none of them can be, or there is none."""
        todo = plan.changes.todo
        good, bad = inspected([(each.file, each.format) for each in todo], self._job.errors.bad_files)
        if not good:
            return None, [str(file) for file in bad]
        known = known_columns(ledger) if plan.rescore != "all" else []
        inputs = with_one_schema(good, bad, known)
        if not inputs.schema.names:
            raise InputError(f"input.path: {good[0].path} and all other new files have no columns")
        if other := column_changes(known, inputs.schema):
            _tell(f"the columns are not those of the runs before:\n  {shown(other)}")
        return inputs, [str(file) for file in bad]

    def _note(self, ledger: Ledger, plan: _Plan, skipped: list[str]) -> int:
        """Write down what needs no run, if anything is worth it."""
        other = ledger.last is not None and differences(ledger.last.settings, self._settings)
        noted = plan.changes.only([])
        if noted.is_noted or noted.displaced or other:
            entry = self._entry(ledger, plan, noted)
            self._lease.check()
            append(self._output, replace(entry, skipped=tuple(skipped)))
            settle(self._output, ledger.with_entry(entry))
        _tell(f"Nothing to do: {self._job.output.path} is up to date ({noted.words()}).")
        if not skipped:
            return EXIT_DONE
        _tell(f"{len(skipped):,} input files cannot be read and were skipped: exit code {EXIT_TOO_MANY_FAILED}")
        return EXIT_TOO_MANY_FAILED

    def _entry(self, ledger: Ledger, plan: _Plan, changes: Changes) -> Entry:
        return Entry(
            number=len(ledger.entries) + 1,
            run=plan.name,
            ended=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            layout=layout(self._job),
            settings=self._settings,
            rescore=plan.rescore,
            replaced=changes.replaced,
            moved=changes.moved,
            seen=changes.seen,
            gone=changes.gone,
        )

    def _run(self, ledger: Ledger, plan: _Plan, inputs: InputFiles) -> int:
        done = {file.path for file in inputs.files}
        plan = replace(plan, changes=plan.changes.only([each for each in plan.changes.todo if each.file.path in done]))
        run = self._prepared(plan, inputs)
        if not plan.is_resumed:
            write_todo(self._output, plan.name, self._todo(plan))
        _tell(f"run {plan.name}{' goes on' if plan.is_resumed else ''}: {plan.changes.words()}")
        try:
            report = complete(run, self._address, self._limits)
            sample, drift = self._drift(ledger, plan, run)
            report = self._reported(plan, run, report, drift)
            entry = self._finished(ledger, plan, run, report, drift)
            write_profile(self._output, Profile.of(plan.name, sample))
            self._lease.check()
            append(self._output, entry)
            settle(self._output, ledger.with_entry(entry))
        except OutputInUseError:
            raise  # the output is another run's by now
        except BaseException as error:
            write_failure(run, *ending(error), self._output)
            raise
        if drift is not None:
            print(drift.line())
        print(report.summary())
        return report.exit_code

    def _prepared(self, plan: _Plan, inputs: InputFiles) -> Run:
        """Return the run as one of its own, over its files alone. Raises ConfigError."""
        job, paths = self._job, tuple(file.path for file in inputs.files)
        source = job.input.model_copy(update={"path": paths, "incremental": False})
        output = job.output.model_copy(update={"path": work_folder(self._output, plan.name)})
        run = prepare_on(job.model_copy(update={"input": source, "output": output}), inputs)
        names = [*(run.columns or inputs.schema.names), *(job.output.prefix + name for name in run.task.adds.names)]
        if job.output.incremental == "partition" and RUN_COLUMN in names:
            raise ConfigError(
                f'output.incremental: the output has a column "{RUN_COLUMN}", and so have the folders of partition; '
                "choose append, or leave the column out with input.columns"
            )
        return replace(run, by_file=True)

    def _todo(self, plan: _Plan) -> dict[str, Any]:
        return {
            "rescore": plan.rescore,
            "layout": layout(self._job),
            "settings": self._settings,
            "files": [each.stamp() for each in plan.changes.todo],
        }

    def _drift(self, ledger: Ledger, plan: _Plan, run: Run) -> tuple[Sample, Drift | None]:
        limits, rows = self._job.drift, run.plan.num_rows
        sample = read_sample(run.folder, self._job.output.prefix, run.task.adds.names, sorted(run.task.reads), rows)
        reference = last_profile(self._output, ledger, limits.min_rows)
        is_compared = reference is not None and rows >= limits.min_rows
        return sample, drift_from(reference, plan.name, sample, limits) if is_compared and reference else None

    def _reported(self, plan: _Plan, run: Run, report: Report, drift: Drift | None) -> Report:
        """Write the run's report, which speaks of the place where its parts will be, and return it."""
        facts = {
            "run": plan.name,
            "rescore": plan.rescore,
            "files": plan.changes.words(),
            "drift": None if drift is None else drift.line(),
        }
        output = final_folder(self._output, plan.name, layout(self._job))
        report = replace(report, output=output, incremental=facts).judged(self._job.errors)
        if drift is not None and drift.reason is not None:
            reasons = [] if report.is_good else [report.reason]
            report = replace(report, exit_code=EXIT_TOO_MANY_FAILED, reason="; ".join([*reasons, drift.reason]))
        write_report(run, report)
        folder = OutputFolder.at(run.folder)
        if drift is not None:
            with folder.whole_file(folder.private / DRIFT_FILE) as staged:
                staged.write_text(json.dumps(drift.as_json(), indent=1) + "\n", encoding="utf-8")
        write_page(report, run.folder, drift)
        return report

    def _finished(self, ledger: Ledger, plan: _Plan, run: Run, report: Report, drift: Drift | None) -> Entry:
        folder, form = OutputFolder.at(run.folder), layout(self._job)
        parts = [part.relative_to(folder.root).as_posix() for part in folder.parts()]
        groups = (run.plan.num_rows and published_groups(run.folder)) or [[] for _ in run.inputs.files]
        sha256 = {each.file.path: each.sha256 for each in plan.changes.todo}
        partitions = {each.file.path: each.file.partition for each in plan.changes.todo}
        files = [
            DoneFile(
                path=file.path,
                size_bytes=file.size_bytes,
                mtime_ns=file.mtime_ns,
                version=file.version,
                sha256=sha256[file.path],
                num_rows=file.num_rows,
                partition=partitions[file.path],
                run=plan.name,
                parts=tuple(final_names(names, plan.name, form)),
            )
            for file, names in zip(run.inputs.files, groups, strict=True)
        ]
        largest = None if drift is None else drift.largest
        return replace(
            self._entry(ledger, plan, plan.changes),
            rows=report.rows,
            failed=report.failed,
            max_psi=None if largest is None else largest.psi,
            files=tuple(files),
            skipped=tuple(report.skipped_files),
            parts=tuple(final_names(parts, plan.name, form)),
            schema=schema_text(run.inputs.schema),
        )


def _resumed(found: Changes, todo: Mapping[str, Any]) -> Changes | None:
    """Return the changes with an interrupted run's files only; None where they are not what they were."""
    there = {json.dumps(each.stamp(), sort_keys=True): each for each in found.todo}
    wanted = [json.dumps(stamp, sort_keys=True) for stamp in todo["files"]]
    if not wanted or not set(wanted) <= there.keys():
        return None
    return found.only([there[stamp] for stamp in wanted])


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
