"""One incremental run: what it is to do, the ordinary run that does it, and what is written of it at the end."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptj_batch.errors import ConfigError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.publish import published_groups
from gptj_batch.records.read import InputFiles
from pipelines.config import Job
from pipelines.drift import Drift, drift_from
from pipelines.incremental import Changes, TodoFile, layout, schema_text
from pipelines.ledger import DoneFile, Entry, Ledger, Rescore
from pipelines.prepare import Run, prepare_on
from pipelines.profile import Profile, Sample, read_sample
from pipelines.profiles import last_profile, write_profile
from pipelines.report import EXIT_TOO_MANY_FAILED, Report, write_report
from pipelines.report_page import write_page
from pipelines.run_place import DRIFT_FILE, RUN_COLUMN, final_folder, final_names, work_folder


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A run that is not in the ledger yet.

    output: the folder that it adds to    settings: what decides its rows, see `prepare.result_settings`
    instead_of: a run that was interrupted, and goes when this one begins
    """

    name: str
    output: str
    job: Job
    settings: Mapping[str, Any]
    changes: Changes
    rescore: Rescore | None
    is_resumed: bool = False
    instead_of: str | None = None

    def doing(self, todo: Sequence[TodoFile]) -> "NewRun":
        """Return the run where it does these files only."""
        return replace(self, changes=self.changes.only(todo))

    def todo(self) -> dict[str, Any]:
        """Return what is written down before the run begins, so that another process can go on with it."""
        return {
            "rescore": self.rescore,
            "layout": layout(self.job),
            "settings": self.settings,
            "files": [each.stamp() for each in self.changes.todo],
        }

    def prepared(self, inputs: InputFiles) -> Run:
        """Return the run as one of its own, over its files alone. Raises ConfigError."""
        job, paths = self.job, tuple(file.path for file in inputs.files)
        source = job.input.model_copy(update={"path": paths, "incremental": False})
        output = job.output.model_copy(update={"path": work_folder(self.output, self.name)})
        run = prepare_on(job.model_copy(update={"input": source, "output": output}), inputs)
        names = [*(run.columns or inputs.schema.names), *(job.output.prefix + name for name in run.task.adds.names)]
        if job.output.incremental == "partition" and RUN_COLUMN in names:
            raise ConfigError(
                f'output.incremental: the output has a column "{RUN_COLUMN}", and so have the folders of partition; '
                "choose append, or leave the column out with input.columns"
            )
        return replace(run, by_file=True, told_in=self.output)

    def entry(self, ledger: Ledger) -> Entry:
        """Return what the ledger is to have of the run besides the rows."""
        return Entry(
            number=len(ledger.entries) + 1,
            run=self.name,
            ended=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            layout=layout(self.job),
            settings=self.settings,
            rescore=self.rescore,
            replaced=self.changes.replaced,
            moved=self.changes.moved,
            seen=self.changes.seen,
            gone=self.changes.gone,
        )

    def finished(self, ledger: Ledger, run: Run, report: Report) -> tuple[Entry, Report, Drift | None]:
        """Write the report of a run whose parts are published, and return it and what the ledger is to have.

        Raises OutputError.
        """
        sample = self._sample(run)
        drift = self._drift(ledger, sample)
        write_profile(self.output, Profile.of(self.name, sample))
        report = self._reported(run, report, drift)
        folder, form = OutputFolder.at(run.folder), layout(self.job)
        parts = [part.relative_to(folder.root).as_posix() for part in folder.parts()]
        largest = None if drift is None else drift.largest
        entry = replace(
            self.entry(ledger),
            rows=report.rows,
            failed=report.failed,
            max_psi=None if largest is None else largest.psi,
            files=tuple(self._done_files(run)),
            skipped=tuple(report.skipped_files),
            parts=tuple(final_names(parts, self.name, form)),
            schema=schema_text(run.inputs.schema),
        )
        return entry, report, drift

    def _sample(self, run: Run) -> Sample:
        prefix, added, texts = self.job.output.prefix, run.task.adds.names, sorted(run.task.reads)
        return read_sample(run.folder, prefix, added, texts, run.plan.num_rows)

    def _drift(self, ledger: Ledger, sample: Sample) -> Drift | None:
        limits = self.job.drift
        reference = last_profile(self.output, ledger, limits.min_rows)
        if reference is None or sample.rows < limits.min_rows:
            return None
        return drift_from(reference, self.name, sample, limits)

    def _reported(self, run: Run, report: Report, drift: Drift | None) -> Report:
        """Write the run's report, which speaks of the place where its parts will be, and return it."""
        facts = {
            "run": self.name,
            "rescore": self.rescore,
            "files": self.changes.words(),
            "drift": None if drift is None else drift.line(),
        }
        output = final_folder(self.output, self.name, layout(self.job))
        report = replace(report, output=output, incremental=facts).judged(self.job.errors)
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

    def _done_files(self, run: Run) -> list[DoneFile]:
        form, todo = layout(self.job), {each.file.path: each for each in self.changes.todo}
        groups = (run.plan.num_rows and published_groups(run.folder)) or [[] for _ in run.inputs.files]
        return [
            DoneFile(
                path=file.path,
                size_bytes=file.size_bytes,
                mtime_ns=file.mtime_ns,
                version=file.version,
                sha256=todo[file.path].sha256,
                num_rows=file.num_rows,
                partition=todo[file.path].file.partition,
                run=self.name,
                parts=tuple(final_names(names, self.name, form)),
            )
            for file, names in zip(run.inputs.files, groups, strict=True)
        ]
