"""The store on a file system of this machine, local or mounted."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from uuid import uuid4

from gptj_batch.records.store import Listing


class LocalStore:
    """A file appears under its name by being renamed, and exclusively by a second name for it; see `Store`."""

    def check(self, root: PurePath) -> None:
        """Do nothing: the first file that is written tells."""

    def stage(self, folder: PurePath, final: PurePath) -> Path:
        """Return a path on the same file system, so that it can be renamed."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(final).parent.mkdir(parents=True, exist_ok=True)
        return Path(folder) / f"{final.stem}-{uuid4().hex}{final.suffix}"

    def put(self, staged: Path, path: PurePath) -> None:
        """Bring the file onto the disk, and rename it."""
        _sync(staged)
        staged.replace(path)
        with suppress(OSError):  # some mounted file systems cannot sync a folder
            _sync(Path(path).parent)

    def write(self, path: PurePath, data: bytes) -> None:
        """Write beside, and rename."""
        staged = _beside(path)
        try:
            staged.parent.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(data)
            staged.replace(path)
        finally:
            with suppress(OSError):
                staged.unlink(missing_ok=True)

    def create(self, path: PurePath, data: bytes) -> bool:
        """Give a written file its name as a second one, which the system refuses where the name is taken."""
        staged = _beside(path)
        try:
            staged.parent.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(data)
            return _link(staged, Path(path), data)
        finally:
            with suppress(OSError):
                staged.unlink(missing_ok=True)

    def put_new(self, staged: Path, path: PurePath) -> bool:
        """Bring the file onto the disk, and give it its name as a second one."""
        _sync(staged)
        try:
            os.link(staged, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: whole, and exclusive but for a moment
            if os.path.lexists(path):
                return False
            staged.replace(path)
        with suppress(OSError):
            _sync(Path(path).parent)
        return True

    def touch(self, path: PurePath, data: bytes) -> None:
        """Set the file's time; who asks has looked at what is in it."""
        os.utime(path)

    def modified(self, path: PurePath) -> float:
        """Return the file's time."""
        return Path(path).stat().st_mtime

    def now(self, path: PurePath) -> float:
        """Return the time of a file written now: a server's clock need not be ours."""
        staged = _beside(path)
        try:
            staged.parent.mkdir(parents=True, exist_ok=True)
            with staged.open("xb") as file:  # not asked by its name: the folder may change places with another
                return os.fstat(file.fileno()).st_mtime
        finally:
            with suppress(OSError):
                staged.unlink(missing_ok=True)

    def read(self, path: PurePath) -> bytes:
        """Return the file's bytes."""
        return Path(path).read_bytes()

    def source(self, path: PurePath) -> str:
        """Return the file's name."""
        return str(path)

    def exists(self, path: PurePath) -> bool:
        """Tell whether it is there."""
        return Path(path).exists()

    def is_folder(self, path: PurePath) -> bool:
        """Tell whether a folder is there, and no link to one."""
        return Path(path).is_dir() and not Path(path).is_symlink()

    def names(self, folder: PurePath) -> list[str]:
        """Return the names in a folder."""
        return sorted(os.listdir(folder))  # noqa: PTH208 - of 100,000 names, no 100,000 paths

    def walk(self, root: PurePath, is_wanted: Callable[[str], bool]) -> list[Listing]:
        """Return the folders with the names in them, those of folders too."""
        return list(self._walk(Path(root), is_wanted))

    def _walk(self, folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[Listing]:
        try:
            names = self.names(folder)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        yield folder, names
        for name in names:
            if is_wanted(name) and self.is_folder(folder / name):
                yield from self._walk(folder / name, is_wanted)

    def remove(self, path: PurePath) -> None:
        """Remove it."""
        if self.is_folder(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)

    def remove_files(self, paths: Iterable[PurePath]) -> None:
        """Remove one after the other."""
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def move(self, files: Mapping[PurePath, PurePath]) -> None:
        """Rename one after the other."""
        for source, target in files.items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(source).replace(target)

    def move_folder(self, source: PurePath, target: PurePath, seal: str) -> None:
        """Rename it, with its seal."""
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        Path(source).rename(target)

    def remove_if_empty(self, folder: PurePath) -> None:
        """Remove an empty folder."""
        with suppress(OSError):
            Path(folder).rmdir()


def _beside(path: PurePath) -> Path:
    return Path(path).with_name(f".{path.name}-{uuid4().hex}")


def _link(staged: Path, path: Path, data: bytes) -> bool:
    try:
        os.link(staged, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: exclusive, and whole a moment later
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
    return True


def _sync(path: Path) -> None:
    """Bring a file or folder onto the disk, so that a machine that loses power keeps it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
