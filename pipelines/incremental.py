"""What an incremental run has to do: the input's files held against the ledger.

A file is told by its path, its size and its time (or version); where these differ, by its whole content. So a file that
was touched, or has another name now, is not done again.
"""

import base64
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa

from gptj_batch.errors import ConfigError, shorten
from gptj_batch.records.formats import FileFormat, with_formats
from gptj_batch.records.huggingface import dataset_files
from gptj_batch.records.locate import FoundFile, find_files
from gptj_batch.records.progress import differences
from pipelines.apart import check_found_apart, input_paths
from pipelines.config import Job
from pipelines.ledger import DoneFile, Ledger, Rescore

Found = Sequence[tuple[FoundFile, FileFormat]]
_MAX_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class TodoFile:
    """A file to be done; `replaces` is what is there of an earlier content, or by other settings."""

    file: FoundFile
    format: FileFormat
    sha256: str
    replaces: DoneFile | None = None

    def stamp(self) -> dict[str, Any]:
        """Return what must be the same when an interrupted run goes on."""
        file = self.file
        return {
            "path": file.path,
            "size_bytes": file.size_bytes,
            "mtime_ns": file.mtime_ns,
            "version": file.version,
            "sha256": self.sha256,
        }


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What became of the input since the last run; see `ledger.Entry`.

    displaced: of files whose name another one has now that was done before
    """

    todo: tuple[TodoFile, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    seen: tuple[Mapping[str, Any], ...] = ()
    gone: tuple[str, ...] = ()
    displaced: tuple[DoneFile, ...] = ()
    num_unchanged: int = 0

    @property
    def replaced(self) -> tuple[DoneFile, ...]:
        """Return the files whose earlier rows are not to stay."""
        return (*self.displaced, *(each.replaces for each in self.todo if each.replaces is not None))

    def only(self, todo: Sequence[TodoFile]) -> "Changes":
        """Return the changes where only these files are done."""
        return replace(self, todo=tuple(todo))

    @property
    def is_noted(self) -> bool:
        """Tell whether there is something to note, done or not."""
        return bool(self.todo or self.moved or self.seen or self.gone)

    def words(self) -> str:
        """Return the changes for people."""
        changed = sum(each.replaces is not None for each in self.todo)
        counts = {
            "new": len(self.todo) - changed,
            "to be done again": changed,
            "renamed": len(self.moved),
            "touched but the same": len(self.seen) - len(self.moved),
            "deleted (their rows stay)": len(self.gone),
            "unchanged": self.num_unchanged,
        }
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "no files"


def check_settings(job: Job) -> None:
    """Raise ConfigError for settings that an incremental run cannot have."""
    wrong = {
        "input.limit: an incremental run does whole files; leave it out": job.input.limit is not None,
        "input.format: the files of a dataset do not come and go one by one, so huggingface is not read incrementally; "
        "name files or a folder": job.input.format == "huggingface",
        f"output.on_exists: an incremental run goes on with the output that is there, so {job.output.on_exists} means "
        "nothing; leave it out (--rescore all does everything again)": job.output.on_exists != "resume",
    }
    if found := [message for message, is_wrong in wrong.items() if is_wrong]:
        raise ConfigError("\n".join(found))


def layout(job: Job) -> dict[str, Any]:
    """Return what all runs of an output must have in common, so that one reader reads all of it."""
    output = job.output
    return {
        "output.incremental": output.incremental,
        "output.format": output.format,
        "output.partition_by": list(output.partition_by),
        "output.prefix": output.prefix,
    }


def check_same(ledger: Ledger, job: Job, settings: Mapping[str, Any], rescore: Rescore | None) -> None:
    """Raise ConfigError where the job is not what the last run was, and nobody said what is to become of it."""
    if (last := ledger.last) is None:
        return
    if changed := differences(last.layout, layout(job)):
        raise ConfigError(
            f"output.path: {job.output.path} was begun with another form of output:\n  {shown(changed)}\nOne dataset "
            "has one form: set it back, or choose another output.path"
        )
    if rescore is None and (changed := differences(last.settings, settings)):
        raise ConfigError(
            f"output.path: {job.output.path} was made with other settings, the last time by run {last.run}:\n  "
            f"{shown(changed)}\nSet them back, or say what is to become of the results that are there: --rescore new "
            "keeps them and does only new files with the new settings, --rescore all does every file again"
        )


def shown(changed: Sequence[str]) -> str:
    """Return differences for a message, not too many."""
    more = [f"and {len(changed) - _MAX_SHOWN:,} more"] if len(changed) > _MAX_SHOWN else []
    return "\n  ".join([*changed[:_MAX_SHOWN], *more])


def find(job: Job, ledger: Ledger) -> Found:
    """List the input's files, without reading any. Raises ConfigError or InputError.

    Where files were done before, none may be there now: an inbox may be emptied.
    """
    paths = dataset_files(input_paths(job), job.input.format, job.input.subset, job.input.split)
    files = find_files(paths, ledger.files)
    check_found_apart(job, [file.path for file in files])
    return with_formats(files, job.input.format, may_be_none=bool(ledger.files))


Hashes = Callable[[Sequence[str]], Mapping[str, str]]


def changes(found: Found, ledger: Ledger, hashes: Hashes, rescore: Rescore | None = None) -> Changes:
    """Hold the files against the ledger.

    hashes: what reads files and returns the hash of each content; asked only for files that may be other ones
    """
    files = {file.path: (file, kind) for file, kind in found}
    unchanged = {path for path, (file, _) in files.items() if _is_stamp(ledger.files.get(path), file)}
    others = [path for path in files if path not in unchanged]
    sha256 = dict(hashes(others))
    sorted_out = _sorted_out(files, others, sha256, ledger)
    back = sorted(unchanged & ledger.gone)
    noted = Changes(
        moved=sorted_out.moved,
        seen=tuple(_seen(files[path][0]) for path in (*sorted_out.touched, *back, *dict(sorted_out.moved))),
        gone=tuple(sorted(sorted_out.gone - ledger.gone)),
        displaced=sorted_out.displaced,
        num_unchanged=len(unchanged) - len(back),
    )
    todo = tuple(
        TodoFile(file=files[path][0], format=files[path][1], sha256=sha256[path], replaces=sorted_out.left.get(path))
        for path in sorted_out.todo
    )
    if rescore != "all":
        return replace(noted, todo=todo)
    return replace(noted, todo=_everything(files, sha256, sorted_out.left), num_unchanged=0)


class _SortedOut(NamedTuple):
    """What the files are that are not as they were; `left` is where every file's rows are once names are known."""

    touched: list[str]
    moved: tuple[tuple[str, str], ...]
    todo: list[str]
    gone: set[str]
    displaced: tuple[DoneFile, ...]
    left: dict[str, DoneFile]


def _sorted_out(
    files: Mapping[str, tuple[FoundFile, FileFormat]], others: Sequence[str], sha256: Mapping[str, str], ledger: Ledger
) -> _SortedOut:
    touched = [path for path in others if path in ledger.files and _is_content(ledger, path, files, sha256[path])]
    changed = sorted(set(others) - set(touched))
    # Whose content is not under its own name any more may have gone to another one, as where files are rotated.
    homeless: dict[tuple[Any, ...], list[DoneFile]] = defaultdict(list)
    is_changed = set(changed)
    for path, done in ledger.files.items():
        if path not in files or path in is_changed:
            homeless[done.sha256, done.size_bytes, done.partition].append(done)
    moved, todo, left = [], [], dict(ledger.files)
    for path in changed:
        file = files[path][0]
        if same := homeless.get((sha256[path], file.size_bytes, file.partition)):
            moved.append((path, same.pop().path))
        else:
            todo.append(path)
    done_files = [(new, left.pop(old)) for new, old in moved]
    displaced = tuple(left[new] for new, _ in done_files if new in left)
    left |= {new: replace(done, path=new) for new, done in done_files}
    gone = {path for path in left if path not in files}
    return _SortedOut(touched, tuple(moved), todo, gone, displaced, left)


def _everything(
    files: Mapping[str, tuple[FoundFile, FileFormat]], sha256: Mapping[str, str], left: Mapping[str, DoneFile]
) -> tuple[TodoFile, ...]:
    return tuple(
        TodoFile(
            file=file,
            format=kind,
            sha256=sha256.get(path) or left[path].sha256,
            replaces=left.get(path),
        )
        for path, (file, kind) in files.items()
    )


def _is_stamp(done: DoneFile | None, file: FoundFile) -> bool:
    return done is not None and (done.size_bytes, done.mtime_ns, done.version, done.partition) == (
        file.size_bytes,
        file.mtime_ns,
        file.version,
        file.partition,
    )


def _is_content(ledger: Ledger, path: str, files: Mapping[str, tuple[FoundFile, FileFormat]], sha256: str) -> bool:
    done = ledger.files[path]
    return (done.sha256, done.partition) == (sha256, files[path][0].partition)


def _seen(file: FoundFile) -> dict[str, Any]:
    return {"path": file.path, "mtime_ns": file.mtime_ns, "version": file.version}


class KnownColumns(NamedTuple):
    """The columns of the runs before, as `records.merge` takes them: new files' go behind them."""

    schema: pa.Schema
    path: str = "the files that were done before"
    format: str = ""


def known_columns(ledger: Ledger) -> list[KnownColumns]:
    """Return the columns that the last run with files read; nothing where there is none."""
    text = next((entry.schema for entry in reversed(ledger.entries) if entry.schema), "")
    return [KnownColumns(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))))] if text else []


def schema_text(schema: pa.Schema) -> str:
    """Return columns as an entry of the ledger has them."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def column_changes(known: Sequence[KnownColumns], schema: pa.Schema) -> list[str]:
    """Return how columns differ from those of the runs before, a line each."""
    if not known:
        return []
    before = {field.name: shorten(field.type) for field in known[0].schema}
    return differences(before, {field.name: shorten(field.type) for field in schema})
