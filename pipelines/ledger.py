"""The ledger of an output that incremental runs keep: which input file's rows are where, and which run put them there.

One JSON file a finished run, `_gptj_batch/ledger/00000001.json` and on, each of which appears whole or not at all: that
it is there is what makes the run a finished one. What holds now is what all of them say, one after the other. Their
order is that of their numbers; no clock is asked.
"""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any, Literal, Self

from gptj_batch.errors import OutputError, OutputInUseError, shorten
from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.store import BucketPath

Rescore = Literal["all", "new"]
_ENTRY = re.compile(r"\d{8,}\.json")
_FOLDER, _RUNS = "ledger", "runs"
_READ_AT_ONCE = 8  # a bucket takes its time for each


@dataclass(frozen=True, kw_only=True)
class DoneFile:
    """An input file as it was when its rows were done, and the parts that have them.

    mtime_ns, version: what tells one content from another without reading it    sha256: of all its bytes
    partition: what its folders say, as in `day=1/`    run: the one that did it    parts: names below the output
    """

    path: str
    size_bytes: int
    mtime_ns: int
    version: str
    sha256: str
    num_rows: int
    partition: tuple[tuple[str, str | None], ...]
    run: str
    parts: tuple[str, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the file that an entry has. Raises KeyError or TypeError where it has none."""
        named = {each.name: values[each.name] for each in fields(cls)}
        named["partition"] = tuple((str(name), value) for name, value in values["partition"])
        return cls(**{**named, "parts": tuple(values["parts"])})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one run did, and what it found of the files that it did not have to do.

    layout: what all runs of an output have in common    settings: what decides a row's result
    files: those done    replaced: files whose earlier rows the run's take the place of
    moved: new path and the old one, of files that are the same    seen: files that were touched, or are back
    gone: files that were deleted; their rows stay    skipped: files that could not be read
    schema: the columns that were read, serialised by Arrow, in base64
    """

    number: int
    run: str
    ended: str
    layout: Mapping[str, Any]
    settings: Mapping[str, Any]
    rescore: Rescore | None = None
    rows: int = 0
    failed: int = 0
    max_psi: float | None = None
    files: tuple[DoneFile, ...] = ()
    replaced: tuple[DoneFile, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    seen: tuple[Mapping[str, Any], ...] = ()
    gone: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    schema: str = field(default="", repr=False)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the entry that a file of the ledger holds. Raises KeyError or TypeError where it holds none."""
        named = {each.name: values[each.name] for each in fields(cls)}
        for name in ("files", "replaced"):
            named[name] = tuple(DoneFile.from_json(each) for each in values[name])
        named["moved"] = tuple((new, old) for new, old in values["moved"])
        return cls(**{**named, **{name: tuple(values[name]) for name in ("seen", "gone", "skipped", "parts")}})


@dataclass(frozen=True)
class Ledger:
    """What the entries say together.

    files: every file whose rows are in the output, by its path    gone: those of them that are not in the input now
    """

    entries: tuple[Entry, ...] = ()
    files: Mapping[str, DoneFile] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    @property
    def last(self) -> Entry | None:
        """Return the newest entry; None in an output that has no finished run."""
        return self.entries[-1] if self.entries else None

    def with_entry(self, entry: Entry) -> "Ledger":
        """Return the ledger with one more entry."""
        files, gone = dict(self.files), set(self.gone)
        _take(entry, files, gone)
        return Ledger((*self.entries, entry), files, frozenset(gone))


def _take(entry: Entry, files: dict[str, DoneFile], gone: set[str]) -> None:
    """Let an entry change what holds."""
    moved = [(new, files.pop(old)) for new, old in entry.moved]  # all are taken out first: names may go round
    gone.difference_update(old for _, old in entry.moved)
    files.update((new, replace(file, path=new)) for new, file in moved)
    for seen in entry.seen:
        path = str(seen["path"])
        files[path] = replace(files[path], mtime_ns=seen["mtime_ns"], version=seen["version"])
        gone.discard(path)
    files.update((file.path, file) for file in entry.files)
    gone.difference_update(file.path for file in entry.files)
    gone.update(entry.gone)


def is_incremental(output: str | PurePath) -> bool:
    """Tell whether incremental runs keep an output. Raises OSError for a bucket that does not say."""
    folder = OutputFolder.at(output)
    return any(folder.store.is_folder(folder.private / name) for name in (_FOLDER, _RUNS))


def dataset_of(output: str | PurePath) -> PurePath | None:
    """Return the incremental output of which an output is a run; None where it is none. Raises OSError for a bucket.

    What lies above an output in a bucket is asked only where its name is a run's: it may be forbidden to look there.
    """
    root = real_root(output)
    above = root.parent
    if isinstance(above, BucketPath) and not (above.key and root.name.startswith("run=")):
        return None
    return above if is_incremental(above) else None


def real_root(output: str | PurePath) -> PurePath:
    """Return where an output lies, links followed."""
    root = OutputFolder.at(output).root
    return root if isinstance(root, BucketPath) else Path(root).resolve()


def runs_folder(output: str | PurePath) -> PurePath:
    """Return the folder of the runs that are not finished, or whose parts lie with all others."""
    return OutputFolder.at(output).private / _RUNS


def read_ledger(output: str | PurePath) -> Ledger:
    """Return the ledger of an output; an empty one where there is none. Raises OutputError for one that is damaged."""
    entries: list[Entry] = []
    files: dict[str, DoneFile] = {}
    gone: set[str] = set()
    for number, (file, found) in enumerate(_entry_files(output), start=1):
        try:
            if isinstance(found, OSError):
                raise found
            entry = Entry.from_json(json.loads(found))
            if entry.number != number:
                raise ValueError(f"it has number {entry.number} and is the {number}th")
            _take(entry, files, gone)
            entries.append(entry)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"output.path: {file} cannot be read: {type(error).__name__} {shorten(error, 200)}. Without it nobody "
                "knows which files are done; put it back from a copy, or choose another output.path"
            ) from error
    return Ledger(tuple(entries), files, frozenset(gone))


def append(output: str | PurePath, entry: Entry) -> None:
    """Add an entry to the ledger, whole or not at all.

    Raises OutputError, and OutputInUseError where another run has added one of this number.
    """
    folder = OutputFolder.at(output)
    final = folder.private / _FOLDER / f"{entry.number:08d}.json"
    staged: Path | None = None
    try:
        staged = folder.store.stage(folder.staging, final)
        staged.write_text(json.dumps(asdict(entry), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        is_new = folder.store.put_new(staged, final)
    except OSError as error:
        raise not_written(final, error) from error
    finally:
        with suppress(OSError):
            if staged is not None:
                staged.unlink(missing_ok=True)
        folder.store.remove_if_empty(folder.staging)
    if not is_new:
        raise OutputInUseError(
            f"output.path: {folder.root} has another run {entry.number} by now; this one stops, run it again"
        )


def _entry_files(output: str | PurePath) -> Sequence[tuple[PurePath, bytes | OSError]]:
    """Return the files of the ledger in their order, each with what is in it or why it cannot be read."""
    folder = OutputFolder.at(output)
    try:
        names = folder.store.names(folder.private / _FOLDER)
    except FileNotFoundError:
        return []
    files = [folder.private / _FOLDER / name for name in names if _ENTRY.fullmatch(name)]
    files.sort(key=lambda file: int(file.stem))

    def read(file: PurePath) -> bytes | OSError:
        try:
            return folder.store.read(file)
        except OSError as error:
            return error

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return list(zip(files, pool.map(read, files), strict=True))
