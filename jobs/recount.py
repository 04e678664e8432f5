"""Recount: holds a finished output against its input, by the files and not by what any report says of them."""

import json
from dataclasses import dataclass
from pathlib import PurePath

import pyarrow as pa

from gptj_batch.errors import OutputError, shorten
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_reader import count_rows
from gptj_batch.records.progress import differences
from pipelines.ledger import dataset_of, read_ledger
from pipelines.prepare import Run, prepare
from pipelines.report import count_errors, read_report
from pipelines.retry import Finished

_MAX_SHOWN = 10


@dataclass(frozen=True)
class Recount:
    """The numbers of rows that were found, and everything that does not agree."""

    rows_in: int
    rows_out: int
    failed: int
    problems: tuple[str, ...]

    def summary(self) -> str:
        """Return the numbers, and a line for every problem."""
        out = f"{self.rows_out:,} in the output: {self.rows_out - self.failed:,} done, {self.failed:,} failed"
        lines = [f"{self.rows_in:,} rows in the input; {out}"]
        lines += [f"  {problem}" for problem in self.problems[:_MAX_SHOWN]]
        if len(self.problems) > _MAX_SHOWN:
            lines.append(f"  and {len(self.problems) - _MAX_SHOWN:,} more")
        return "\n".join(lines)


def recount(output: str) -> int:
    """Recount a finished output against its input, print what was found and return 0, or 1 where something disagrees.

    Raises ConfigError for what is no finished output, InputError where its input cannot be read any more.
    """
    found = _recount(output)
    print(found.summary())
    print("everything agrees" if not found.problems else f"{len(found.problems):,} things disagree")
    return 0 if not found.problems else 1


def _recount(output: str) -> Recount:
    finished = Finished.read(output)
    run = prepare(finished.job)
    folder = OutputFolder.at(finished.job.output.path)
    problems = [f"the input is another now: {change}" for change in _input_changes(finished, run)]
    promised = json.loads(folder.store.read(folder.success))["parts"]
    rows_out = 0
    later = _replaced_parts(folder.root)
    present = {part.relative_to(folder.root).as_posix(): part for part in folder.parts()}
    problems += [f"{name} is not in _SUCCESS" for name in sorted(present.keys() - promised.keys())]
    for name, num_rows in promised.items():
        if name not in present:
            instead = f"was replaced by run={later[name]}" if name in later else "is missing"
            problems.append(f"{name} {instead}; it had {num_rows:,} rows")
            continue
        try:
            found = count_rows(present[name], "".join(present[name].suffixes))
        except (OSError, pa.ArrowException, OutputError) as error:
            problems.append(f"{name} cannot be read: {shorten(' '.join(str(error).split()), 200)}")
            continue
        rows_out += found
        if found != num_rows:
            problems.append(f"{name} has {found:,} rows and had {num_rows:,} when it was written")
    if rows_out != run.plan.num_rows:
        problems.append(f"the output has {rows_out:,} rows and the input {run.plan.num_rows:,}")
    failed = 0 if problems else sum(count_errors(run).values())
    return Recount(run.plan.num_rows, rows_out, failed, (*problems, *_report_problems(run, rows_out, failed, problems)))


def _replaced_parts(root: PurePath) -> dict[str, str]:
    """Return the parts of an incremental run whose input files a later run did again, and the time of that run."""
    if (dataset := dataset_of(root)) is None:
        return {}
    replaced = [(part, entry.run) for entry in read_ledger(dataset).entries for f in entry.replaced for part in f.parts]
    return {part.removeprefix(f"{root.name}/"): run for part, run in replaced if part.startswith(f"{root.name}/")}


def _input_changes(finished: Finished, run: Run) -> list[str]:
    now = run.fingerprint()
    return differences({"input": finished.fingerprint["input"]}, {"input": now["input"]})


def _report_problems(run: Run, rows_out: int, failed: int, problems: list[str]) -> list[str]:
    """Return what `run.json` says otherwise, where the files themselves agree."""
    if problems:
        return []
    report = read_report(run.job.output.path)
    if report is None:
        return ["run.json cannot be read"]
    said, counted = (report.rows, report.failed), (rows_out, failed)
    return [] if said == counted else [f"run.json says {said} rows and failed rows, and the files {counted}"]
