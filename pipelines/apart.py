"""Input and output apart: no run may read what it writes, or remove what it reads."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from os.path import realpath
from pathlib import Path, PurePath, PurePosixPath

from gptj_batch.errors import ConfigError
from gptj_batch.records.locate import locate, would_find
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.store import BucketPath
from pipelines.config import Job


def input_paths(job: Job) -> list[str]:
    """Return the paths that `input.path` has."""
    return [job.input.path] if isinstance(job.input.path, str) else list(job.input.path)


def check_apart(job: Job) -> None:
    """Raise ConfigError where overwriting the output would remove input, or the next run would read the output."""
    folder = OutputFolder.at(job.output.path)
    root = PurePosixPath(*folder.root.parts) if folder.in_bucket else _real(folder.root)
    for path in input_paths(job):
        place = PurePosixPath(path.partition("?")[0]) if folder.in_bucket else _local(path)
        base = PurePosixPath(*takewhile(lambda part: not set("*?[") & set(part), place.parts))
        pattern = place.parts[len(base.parts) :]
        base = base if folder.in_bucket else _real(base)
        if root in (base, *base.parents):
            raise ConfigError(f"output.path: {job.output.path} holds the input {path}; choose another output.path")
        if base in root.parents and would_find((*root.relative_to(base).parts, *_part(job)), pattern):
            raise ConfigError(
                f"output.path: {job.output.path} lies in the input {path}, whose next run would read it; choose another"
            )


def check_found_apart(job: Job, paths: Iterable[str]) -> None:
    """Raise ConfigError where one of these files, found by input.path, lies in the output, by whichever way."""
    folder = OutputFolder.at(job.output.path)
    inside = _first_in_bucket(folder.root, paths) if folder.in_bucket else _first_below(folder.root, paths)
    if inside is not None:
        raise ConfigError(
            f"input.path: {inside} lies in the output {job.output.path}; choose paths that do not lead there, or "
            "another output.path"
        )


def _local(path: str) -> PurePosixPath:
    """Return where a path leads on this machine; a URI of another place leads nowhere."""
    is_elsewhere = "://" in path.removeprefix("file://")
    return PurePosixPath(path if is_elsewhere else locate(path).path)


def _real(path: PurePath) -> PurePosixPath:
    return PurePosixPath(realpath(path))


def _part(job: Job) -> Sequence[str]:
    """Return a name below the output that a part may get."""
    form, is_incremental = job.output.form, job.input.incremental
    run = ["run=0"] if is_incremental and job.output.incremental == "partition" else []
    part = f"part-{'0-' if is_incremental and not run else ''}00000{form.ending}"
    return [*run, *(f"{column}=0" for column in form.partition_by), part]


def _first_in_bucket(root: PurePath, paths: Iterable[str]) -> str | None:
    return next((path for path in paths if root in BucketPath(path.partition("?")[0]).parents), None)


def _first_below(folder: PurePath, paths: Iterable[str]) -> str | None:
    """Return the first file that is below a folder when all links are followed."""
    root, is_below = _real(folder), {}
    for path in paths:
        above = PurePosixPath(realpath(path) if Path(path).is_symlink() else path).parent
        if above not in is_below:  # of 100,000 files, no 100,000 folders looked up
            is_below[above] = root in (_real(above), *_real(above).parents)
        if is_below[above]:
            return path
    return None
