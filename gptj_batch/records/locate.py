"""Where the input's files are: a file, a folder, a glob or a list of them, on a disk or in a bucket."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from gptj_batch.errors import ConfigError, InputError

_BUCKETS = ("s3", "gs")
_HUB = "hf"
_WILDCARD = re.compile(r"[*?\[]")
_DEFAULT_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Place:
    """A path as its file system calls it, and how to write it so that another process finds it."""

    filesystem: Any
    path: str
    before: str = ""
    after: str = ""

    def public(self, path: str) -> str:
        """Return a path of this file system as a local path or a URI."""
        return f"{self.before}{path}{self.after}"


@dataclass(frozen=True)
class FoundFile:
    """A file that `input.path` leads to; `named` when the user wrote its whole name.

    partition: what the folders below the path that was given say, as in `year=2024/`; None for the default partition
    version: what tells one content from another where the file system knows no time of change
    """

    path: str
    size_bytes: int
    mtime_ns: int
    named: bool
    partition: tuple[tuple[str, str | None], ...] = ()
    version: str = ""


def locate(path: str) -> Place:
    """Return where `path` points; in a URI "?" begins the file system's options, it is no wildcard there.

    hf:// is the Hugging Face hub's, as huggingface_hub reads it. Raises ConfigError for a scheme that is not read (http
    among them), InputError for a bucket that cannot be reached.
    """
    if not _URI.match(path):
        return Place(fs.LocalFileSystem(), Path(path).expanduser().absolute().as_posix())
    uri = urlsplit(path)
    if uri.scheme == "file":
        return Place(fs.LocalFileSystem(), unquote(uri.path))
    if uri.scheme == _HUB:
        return Place(hub_files(), path.removeprefix("hf://").rstrip("/"), "hf://")
    if uri.scheme not in _BUCKETS:
        raise ConfigError(
            f"input.path: {uri.scheme}:// is not read; local paths, s3://, gs:// and hf:// are. Copy the files to one "
            "of these"
        )
    if "@" in uri.netloc:  # what stands before it is not repeated
        raise ConfigError(
            f"input.path: {uri.scheme}://...@ has credentials in it, which would be written down with the path; set "
            "them in the environment"
        )
    # Only the bucket goes through pyarrow's URI parser: keys may hold spaces, '#' and wildcards.
    key, _, query = path.removeprefix(f"{uri.scheme}://{uri.netloc}").partition("?")
    suffix = f"?{query}" if query else ""
    try:
        filesystem, bucket = fs.FileSystem.from_uri(f"{uri.scheme}://{uri.netloc}{suffix}")
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"input.path: {uri.scheme}://{uri.netloc} cannot be reached: {error}") from error
    return Place(filesystem, f"{bucket}{key}".rstrip("/"), f"{uri.scheme}://", suffix)


def hub_files() -> Any:
    """Return the Hugging Face hub as a file system."""
    from huggingface_hub import HfFileSystem  # a client of the network, loaded only where it is needed

    return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))


def find_files(paths: str | Sequence[str], known: Collection[str] = ()) -> list[FoundFile]:
    """Return every file that `paths` lead to, once, sorted by path.

    Folders are read with their subfolders; names that begin with "_" or "." are left out, as Parquet readers do.
    known: files that were found before; where there are any, a folder may be empty by now, but it must be there
    Raises InputError where a path leads to nothing.
    """
    found: dict[str, FoundFile] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        place = locate(path)
        try:
            matches = list(_find(place))
            is_error = not matches and not (known and _is_emptied(place, known))
        except OSError as error:
            raise InputError(f'input.path: "{path}" cannot be listed: {error}') from error
        if is_error:
            raise InputError(
                f'input.path: nothing matches "{path}" (looked for {place.public(place.path)}; names that begin '
                'with "_" or "." are left out). Check the path, and that every machine sees it; the name '
                "of a dataset needs input.format=huggingface"
            )
        for file in matches:
            found.setdefault(file.path, file)
    return [found[path] for path in sorted(found)]


def _find(place: Place) -> Iterator[FoundFile]:
    info = place.filesystem.get_file_info(place.path)
    if info.type == fs.FileType.NotFound and _WILDCARD.search(place.path):
        root, parts = _split_at_wildcard(place.path)
        for match in _expand(place.filesystem, root, parts):
            yield from _files_of(place, match, named=False, root=root)
    else:
        yield from _files_of(place, info, named=True, root=place.path)


def _is_emptied(place: Place, known: Collection[str]) -> bool:
    """Tell whether the folder before the first wildcard is there; in a bucket, it goes with the last file in it."""
    root = _split_at_wildcard(place.path)[0] if _WILDCARD.search(place.path) else place.path
    if place.filesystem.get_file_info(root).type == fs.FileType.Directory:
        return True
    is_local = not place.before
    if is_local or place.filesystem.get_file_info(root.partition("/")[0]).type != fs.FileType.Directory:
        return False
    return any(path.startswith(f"{place.before}{root}/") for path in known)


def _files_of(place: Place, info: Any, named: bool, root: str) -> Iterator[FoundFile]:
    if info.type == fs.FileType.File:
        partition = _partition(info.path, root)
        version = "" if info.mtime_ns else _version(place.filesystem, info.path)
        yield FoundFile(place.public(info.path), info.size, info.mtime_ns or 0, named, partition, version)
    elif info.type == fs.FileType.Directory:
        inside = place.filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
        # what lies hidden, as the runs of an incremental output that go on, is not read and need not be finished
        _refuse_unfinished(place, {entry.path for entry in inside if not _is_hidden(_above(entry.path), info.path)})
        for entry in inside:
            if not _is_hidden(entry.path, info.path) and entry.type == fs.FileType.File:
                yield from _files_of(place, entry, named=False, root=root)


def _split_at_wildcard(path: str) -> tuple[str, list[str]]:
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
    return "/".join(parts[:first]) or "/", parts[first:]


def _expand(filesystem: Any, root: str, parts: Sequence[str]) -> Iterator[Any]:
    """Yield what matches the glob `parts` below `root`; "**" stands for any number of folders."""
    part, rest = parts[0], parts[1:]
    below = sorted(
        filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True)), key=lambda info: str(info.path)
    )
    if part == "**" and rest:
        yield from _expand(filesystem, root, rest)
    for info in below:
        name = PurePosixPath(info.path).name
        if not fnmatchcase(name, "*" if part == "**" else part) or (name[0] in "_." and part[0] not in "_."):
            continue
        is_folder = info.type == fs.FileType.Directory
        if is_folder and part == "**" and rest:
            yield from _expand(filesystem, info.path, parts)
        elif is_folder and rest:
            yield from _expand(filesystem, info.path, rest)
        elif not rest:
            yield info


def would_find(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a glob, or a folder where it is empty, leads to a file; both from the same folder on, in parts."""
    if not pattern:
        return not any(part[0] in "_." for part in path)
    part, rest = pattern[0], pattern[1:]
    if part == "**" and rest and would_find(path, rest):
        return True
    if not path or not fnmatchcase(path[0], "*" if part == "**" else part):
        return False
    if path[0][0] in "_." and part[0] not in "_.":
        return False
    return would_find(path[1:], pattern if part == "**" and rest else rest)


def _below(path: str, root: str) -> tuple[str, ...]:
    return PurePosixPath(path).relative_to(root).parts


def _is_hidden(path: str, root: str) -> bool:
    return any(part[0] in "_." for part in _below(path, root))


def _above(path: str) -> str:
    return PurePosixPath(path).parent.as_posix()


def _partition(path: str, root: str) -> tuple[tuple[str, str | None], ...]:
    """Return what the folders between `root` and a file say of its rows, `key=value` each; values may be escaped."""
    pairs = (folder.partition("=") for folder in _below(path, root)[:-1] if "=" in folder.lstrip("="))
    # A folder inside that says the same name again says it last.
    values = {unquote(key): None if value == _DEFAULT_PARTITION else unquote(value) for key, _, value in pairs}
    return tuple(values.items())


def _version(filesystem: Any, path: str) -> str:
    """Return what a file system behind fsspec calls the content of a file."""
    if not isinstance(filesystem, fs.PyFileSystem):
        return ""
    info = filesystem.handler.fs.info(path)
    return str(next((info[name] for name in ("blob_id", "etag", "ETag", "md5Hash") if info.get(name)), ""))


def _refuse_unfinished(place: Place, inside: set[str]) -> None:
    outputs = [path.removesuffix("/_gptj_batch") for path in inside if path.endswith("/_gptj_batch")]
    if unfinished := [output for output in outputs if f"{output}/_SUCCESS" not in inside]:
        raise InputError(
            f"input.path: {place.public(min(unfinished))} is the output of a gptj-batch run that has not finished "
            "(it has no _SUCCESS); run that job to its end first"
        )
