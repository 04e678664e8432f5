"""The format of an input file: what its ending says, and what `input.format` says instead."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from gptj_batch.errors import ConfigError, InputError, shorten
from gptj_batch.records.locate import FoundFile

FileFormat = Literal["parquet", "arrow", "jsonl", "csv"]

FORMATS: dict[str, FileFormat] = {
    "parquet": "parquet", "arrow": "arrow", "jsonl": "jsonl", "csv": "csv", "huggingface": "arrow",
}  # fmt: skip
TITLES: dict[FileFormat, str] = {"parquet": "Parquet", "arrow": "Arrow", "jsonl": "JSON lines", "csv": "CSV"}
_ENDINGS: dict[str, FileFormat] = {
    ".parquet": "parquet", ".pq": "parquet", ".parq": "parquet",
    ".arrow": "arrow", ".arrows": "arrow", ".ipc": "arrow", ".feather": "arrow",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".csv": "csv", ".tsv": "csv", ".tab": "csv",
}  # fmt: skip
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_TABBED = (".tsv", ".tab")
_MAX_FILES_SHOWN = 5


def compression_of(path: str) -> str | None:
    """Return how a text file is compressed, which its last ending says."""
    return _COMPRESSIONS.get(_suffixes(path)[1])


def delimiter_of(path: str) -> str:
    """Return what stands between the fields of a CSV file: a tab where its ending says so, else a comma."""
    return "\t" if _suffixes(path)[0] in _TABBED else ","


def with_formats(
    files: Sequence[FoundFile], file_format: str, may_be_none: bool = False
) -> list[tuple[FoundFile, FileFormat]]:
    """Return the files that are read, each with its format; with "auto", others of a folder are left alone.

    Raises ConfigError where a named file's ending says nothing, and where a folder or glob holds several formats.
    Raises InputError where no file is left, unless there may be none.
    """
    if given := FORMATS.get(file_format):
        return [(file, given) for file in files]
    if file_format != "auto":
        raise ConfigError(f'input.format: "{shorten(file_format)}" is not known; {", ".join(("auto", *FORMATS))} are')
    pairs = [(file, _by_ending(file)) for file in files]
    known = _without_notes([(file, kind) for file, kind in pairs if kind is not None])
    if not known and not may_be_none:
        names = ", ".join(shorten(PurePosixPath(file.path).name) for file in files[:_MAX_FILES_SHOWN])
        raise InputError(
            f"input.path: no file ends as the files that are read do ({', '.join(_ENDINGS)}; the last six also with "
            f"{', '.join(_COMPRESSIONS)}); it leads to {names}. Set input.format where the files have other names"
        )
    _refuse_mixture(known)
    return known


def format_of(path: str) -> FileFormat | None:
    """Return the format that a name's ending says."""
    return _ENDINGS.get(_suffixes(path)[0])


def _by_ending(file: FoundFile) -> FileFormat | None:
    """Return the format that a name's ending says; None for other files of a folder, such as a README."""
    ending, compressed = _suffixes(file.path)
    kind = _ENDINGS.get(ending)
    if compressed and kind in ("parquet", "arrow"):
        raise ConfigError(
            f"input.path: {file.path}: {TITLES[kind]} files are compressed inside, and cannot be read where they are "
            f"compressed as a whole; unpack it (the ending {compressed} says that it is)"
        )
    if kind is None and file.named:
        raise ConfigError(
            f"input.format: the ending of {file.path} names no format; set input.format to one of {', '.join(FORMATS)}"
        )
    return kind


def _without_notes(known: list[tuple[FoundFile, FileFormat]]) -> list[tuple[FoundFile, FileFormat]]:
    """Leave out `.json` files that were not named and lie beside others: dataset_info.json and the like."""
    notes = [file.path for file, _ in known if not file.named and _suffixes(file.path)[0] == ".json"]
    return [pair for pair in known if pair[0].path not in notes] if 0 < len(notes) < len(known) else known


def _refuse_mixture(known: Sequence[tuple[FoundFile, FileFormat]]) -> None:
    """Raise ConfigError for files of several formats of which some were not named: one may be a copy of the other."""
    first: dict[FileFormat, FoundFile] = {}
    for file, kind in known:
        if not file.named:
            first.setdefault(kind, file)
    if len(first) > 1:
        found = " and ".join(f"{TITLES[kind]} ({file.path})" for kind, file in first.items())
        raise ConfigError(
            f"input.format: input.path leads to files of several formats: {found}. Name those that are meant with a "
            f'glob, such as "*{_suffixes(next(iter(first.values())).path)[0]}", or name each file in a list'
        )


def _suffixes(path: str) -> tuple[str, str]:
    """Return a name's ending without that of a compression, and that of the compression or nothing."""
    name = PurePosixPath(path.partition("?")[0] if "://" in path else path).name.lower()
    last = PurePosixPath(name).suffix
    if last in _COMPRESSIONS:
        return PurePosixPath(PurePosixPath(name).stem).suffix, last
    return last, ""
