"""The store of an output: the few things that are done with its files, on a file system and in a bucket alike.

A path of a store is a pure path, which says where something is and can do nothing: `Path` for a file system, and
`BucketPath` for a bucket. Whatever fails is an OSError; FileNotFoundError and PermissionError are what they say.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Protocol

# A folder with the sorted names of the files in it.
Listing = tuple[PurePath, list[str]]


class BucketPath(PurePosixPath):
    """A place in a bucket: its scheme, the bucket, and the key."""

    def __str__(self) -> str:
        """Return it as its URI, `s3://bucket/key`."""
        return super().__str__().replace(":/", "://", 1)

    @property
    def bucket(self) -> str:
        """Return the bucket's URI, `s3://bucket`."""
        return f"{self.parts[0]}//{self.parts[1]}"

    @property
    def key(self) -> str:
        """Return what the bucket calls the place."""
        return "/".join(self.parts[2:])


class Store(Protocol):
    """What an output needs of the place where it lies."""

    def check(self, root: PurePath) -> None:
        """Raise ConfigError where it is known before anything is written that nothing can be."""

    def stage(self, folder: PurePath, final: PurePath) -> Path:
        """Return where on this machine to write a file before it is stored; `folder` is the output's own for it."""

    def put(self, staged: Path, path: PurePath) -> None:
        """Store a staged file: it stands there whole and for good, or nothing changed. Replaces what was there."""

    def write(self, path: PurePath, data: bytes) -> None:
        """Store a note: it stands there whole or not at all. A machine that loses power may lose it."""

    def create(self, path: PurePath, data: bytes) -> bool:
        """Store a note where there is nothing; False where something is. Of two at once, one gets True."""

    def put_new(self, staged: Path, path: PurePath) -> bool:
        """Store a staged file as `put` does, where there is nothing; False where something is."""

    def touch(self, path: PurePath, data: bytes) -> None:
        """Make a note that holds `data` one of now. Raises FileNotFoundError where it does not hold it any more."""

    def modified(self, path: PurePath) -> float:
        """Return when a file was stored, in seconds, by the store's own clock."""

    def now(self, path: PurePath) -> float:
        """Return the time of that clock; a file beside `path` may be stored and removed for it."""

    def read(self, path: PurePath) -> bytes:
        """Return a file's bytes."""

    def source(self, path: PurePath) -> Any:
        """Return what pyarrow reads a file from: its name, or an open file that reads only what is asked for."""

    def exists(self, path: PurePath) -> bool:
        """Tell whether a file is there."""

    def is_folder(self, path: PurePath) -> bool:
        """Tell whether a folder is there, and no link to one."""

    def names(self, folder: PurePath) -> list[str]:
        """Return the names in a folder, sorted. Raises FileNotFoundError or NotADirectoryError where it is none."""

    def walk(self, root: PurePath, is_wanted: Callable[[str], bool]) -> list[Listing]:
        """Return `root` and the folders below it whose names are all wanted, each before those inside it."""

    def remove(self, path: PurePath) -> None:
        """Remove a file, or a folder with all that is in it; of a link only the link. Does nothing where it is gone."""

    def remove_files(self, paths: Iterable[PurePath]) -> None:
        """Remove files, many at once where the store can; those that are gone are none of them."""

    def move(self, files: Mapping[PurePath, PurePath]) -> None:
        """Give files other names. Cut off at any point, each has its old name or the new one, or both."""

    def move_folder(self, source: PurePath, target: PurePath, seal: str) -> None:
        """Give a folder that holds a file `seal` another name, at once or file by file.

        File by file, the seal comes last and leaves first. So a source that has it is moved by doing this again, and
        one that has none is what is left to be removed. Raises FileExistsError where something else is at `target`.
        """

    def remove_if_empty(self, folder: PurePath) -> None:
        """Remove a folder unless something is in it, or it cannot be removed."""
