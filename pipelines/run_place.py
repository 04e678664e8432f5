"""Where an incremental run's parts lie: out of sight while they are made, then at once in the place that readers see.

A run is an output of its own, made in `_gptj_batch/runs/<run>/`. When the ledger has it, its folder becomes
`run=<run>/`, or its parts get their names among all others; then the parts that it replaces go. Every step can be done
again, and the next run does those that a crash left undone. In a bucket, where nothing is renamed, a folder is copied
part by part; its `_SUCCESS` comes last, and says that all of it is there.
"""

import calendar
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any

from gptj_batch.errors import OutputError, shorten
from gptj_batch.records.output import OutputFolder, not_written, store_of
from gptj_batch.records.publish import is_complete
from pipelines.ledger import Entry, Ledger, runs_folder
from pipelines.report import RUN_FILE

TODO_FILE, DRIFT_FILE, PAGE_FILE = "todo.json", "drift.json", "report.html"
_SHOWN = (RUN_FILE, PAGE_FILE, DRIFT_FILE)
_NAME = "%Y%m%dT%H%M%SZ"
RUN_COLUMN = "run"


def run_name(now: float, ledger: Ledger) -> str:
    """Return a run's name, its time in UTC; later than that of the run before it, whatever the clock says."""
    if ledger.last is not None:
        now = max(now, calendar.timegm(time.strptime(ledger.last.run, _NAME)) + 1)
    return time.strftime(_NAME, time.gmtime(now))


def work_folder(output: str, run: str) -> str:
    """Return the folder in which a run is made."""
    return str(runs_folder(output) / run)


def final_names(parts: Sequence[str], run: str, layout: Mapping[str, Any]) -> list[str]:
    """Return the names below the output that parts of a run's folder get."""
    if layout["output.incremental"] == "partition":
        return [f"{RUN_COLUMN}={run}/{part}" for part in parts]
    paths = [PurePosixPath(part) for part in parts]
    return [str(path.with_name(path.name.replace("part-", f"part-{run}-", 1))) for path in paths]


def final_folder(output: str, run: str, layout: Mapping[str, Any]) -> str:
    """Return the folder in which a run's parts are at the end."""
    is_partition = layout["output.incremental"] == "partition"
    return str(OutputFolder.at(output).root / f"{RUN_COLUMN}={run}") if is_partition else output


def open_run(output: str, ledger: Ledger) -> str | None:
    """Return the run that was begun and is not in the ledger; None where there is none."""
    done = {entry.run for entry in ledger.entries}
    folder = runs_folder(output)
    try:
        return max((name for name in store_of(folder).names(folder) if name not in done), default=None)
    except FileNotFoundError:
        return None


def drop_run(output: str, run: str) -> None:
    """Remove a run that is not in the ledger. Raises OutputError."""
    folder = OutputFolder.at(work_folder(output, run))
    try:
        # What it was to do goes first: without it, nobody goes on with what is left if this is cut off.
        folder.store.remove_files([folder.private / TODO_FILE])
        folder.store.remove(folder.root)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise not_written(folder.root, error) from error


def write_todo(output: str, run: str, todo: Mapping[str, Any]) -> None:
    """Write down what a run is to do, before it begins. Raises OutputError."""
    folder = OutputFolder.at(work_folder(output, run))
    with folder.whole_file(folder.private / TODO_FILE) as staged:
        staged.write_text(json.dumps(todo, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_todo(output: str, run: str) -> dict[str, Any] | None:
    """Return what `write_todo` wrote; None where it was cut off before, or holds something else.

    Raises OutputError where it cannot be read: a bucket that does not answer now may do so at the next run.
    """
    folder = OutputFolder.at(work_folder(output, run))
    try:
        todo = json.loads(folder.store.read(folder.private / TODO_FILE))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise OutputError(
            f"output.path: {folder.private / TODO_FILE} cannot be read: {shorten(error, 200)}. Without it nobody knows "
            "what the interrupted run was to do; run the same command again when it can be read"
        ) from error
    return todo if isinstance(todo, dict) else None


def settle(output: str, ledger: Ledger) -> None:
    """Do what is left of the last run that the ledger has: its parts in their place, those it replaces gone.

    Raises OutputError.
    """
    if (entry := ledger.last) is None:
        return
    folder = OutputFolder.at(output)
    try:
        if entry.parts:
            _place(folder, OutputFolder.at(work_folder(output, entry.run)), entry)
        _remove(folder, [folder.root / part for file in entry.replaced for part in file.parts])
    except OSError as error:
        raise not_written(folder.root, error) from error
    if not is_complete(output):
        with folder.whole_file(folder.success) as staged:
            staged.write_text(json.dumps({"ledger": "_gptj_batch/ledger"}) + "\n", encoding="utf-8")


def _place(folder: OutputFolder, made: OutputFolder, entry: Entry) -> None:
    """Bring a run's parts to their place, if they are not there yet, and let the output's report be the run's."""
    if entry.layout["output.incremental"] != "partition":
        if parts := made.parts():
            show(folder, made)
            names = final_names([part.relative_to(made.root).as_posix() for part in parts], entry.run, entry.layout)
            folder.store.move(dict(zip(parts, (folder.root / name for name in names), strict=True)))
            made.remove_empty_partitions()
    elif is_complete(made.root):
        show(folder, made)
        _become_partition(folder, made, entry.run)
    else:
        folder.store.remove(made.root)  # what is left where that was cut off


def show(folder: OutputFolder, made: OutputFolder) -> None:
    """Let the output's own report be that of its last run. Raises OutputError, or OSError where it cannot be read."""
    for name in _SHOWN:
        try:
            data = made.store.read(made.private / name)
        except FileNotFoundError:
            folder.store.remove(folder.private / name)
            continue
        with folder.whole_file(folder.private / name) as staged:
            staged.write_bytes(data)
    folder.store.remove_if_empty(folder.staging)


def _become_partition(folder: OutputFolder, made: OutputFolder, run: str) -> None:
    target = folder.root / f"{RUN_COLUMN}={run}"
    try:
        folder.store.move_folder(made.root, target, made.success.name)
    except FileExistsError as error:
        raise OutputError(
            f"output.path: {error.filename or target} is there and is not the run's own; move it away and run the job "
            "again"
        ) from error


def _remove(folder: OutputFolder, parts: Sequence[PurePath]) -> None:
    folder.store.remove_files(parts)
    for above in {part.parent for part in parts} - {folder.root}:
        folder.store.remove_if_empty(above)
