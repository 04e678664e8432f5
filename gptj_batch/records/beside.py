"""Overwriting: the new output is made beside the old one, and when it is complete the two folders change places.

A reader sees the old output or the new one. The new one's parts have other names (`OutputFolder.generation`), so that a
reader which listed the folder at that very moment finds none of the files it listed, and never some of each. What
tells, after a crash, which of two folders is the new one is its generation, which is higher.
"""

import ctypes
import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path, PurePath

from gptj_batch.records import bucket_exchange as bucket
from gptj_batch.records.lease import take_lease
from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.progress import clean
from gptj_batch.records.publish import is_complete

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def beside(output: str | PurePath) -> PurePath:
    """Return the folder in which a new output is made until it is complete; readers take none that begins with "."."""
    if OutputFolder.at(output).in_bucket:
        return bucket.beside(output)
    root = _root(output)
    return root.with_name(f".{root.name}.gptj-batch-next")


def can_build_beside(output: str | PurePath) -> bool:
    """Tell whether a complete output is there, and its folder can change places with another."""
    folder = OutputFolder.at(output)
    if folder.in_bucket or not folder.store.exists(folder.success):
        return folder.store.exists(folder.success)
    root = _root(output)
    return os.access(root.parent, os.W_OK | os.X_OK) and not os.path.ismount(root)


def begin_beside(output: str | PurePath) -> None:
    """Make the folder for the new output, if it is not there. Raises OutputError."""
    new, generation = OutputFolder.at(beside(output)), OutputFolder.at(output).generation + 1
    if new.generation != generation:
        with new.whole_file(new.generation_file) as staged:
            staged.write_text(f"{generation}\n", encoding="utf-8")


def change_places(output: str | PurePath) -> None:
    """Put the complete new output where the old one is, and remove that. Raises OutputError.

    What others put into the old folder goes along. Doing it again, after a crash at any point, gives the same.
    """
    if OutputFolder.at(output).in_bucket:
        bucket.change_places(output)
        return
    root, new = _root(output), _new(output)
    if _is_newer(new, root):
        try:
            _bring_leases(root, new)
            _exchange(new, root)
        except OSError as error:
            raise not_written(root, error) from error
    settle(output)


def settle(output: str | PurePath) -> None:
    """Finish a change of places that was cut off; does nothing where there was none. Raises OutputError."""
    if OutputFolder.at(output).in_bucket:
        bucket.settle(output)
        return
    root, new, old = _root(output), _new(output), _old(output)
    try:
        if not os.path.lexists(root) and is_complete(new):
            new.rename(root)
        if root.is_dir() and new.is_dir() and not _is_newer(new, root):
            _dispose(new, root)
        if root.is_dir() and old.is_dir():
            _dispose(old, root)
    except OSError as error:
        raise not_written(root, error) from error


def recover(output: str | PurePath) -> None:
    """Finish an exchange that left the output neither the old nor the new one, before anything is said of it.

    Raises ConfigError for a bucket that cannot be used, OutputInUseError where a run that is alive is at it.
    """
    folder = OutputFolder.at(output)
    folder.store.check(folder.root)
    if not folder.in_bucket and not Path(folder.root).exists():
        settle(output)
    elif folder.in_bucket and bucket.is_unsettled(output):
        with take_lease(output):
            settle(output)


def _root(output: str | PurePath) -> Path:
    return Path(OutputFolder.at(output).root).resolve()


def _new(output: str | PurePath) -> Path:
    return Path(beside(output))


def _old(output: str | PurePath) -> Path:
    root = _root(output)
    return root.with_name(f".{root.name}.gptj-batch-old")


def _is_newer(new: Path, root: Path) -> bool:
    return OutputFolder.at(new).generation > OutputFolder.at(root).generation


def _exchange(new: Path, root: Path) -> None:
    """Let two folders change places at once; where the system cannot, in two steps between which there is none."""
    try:
        _rename_exchange(new, root)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        root.rename(_old(root))
        new.rename(root)


def _rename_exchange(one: Path, other: Path) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


def _bring_leases(root: Path, new: Path) -> None:
    """Give the new folder the lease under which it was made, as the same file."""
    for lease in Path(OutputFolder.at(root).private).glob("lease-*.json"):
        with suppress(FileExistsError):
            os.link(lease, OutputFolder.at(new).private / lease.name)


def _dispose(old: Path, root: Path) -> None:
    """Remove an old output; what is not ours in it moves to the new one's folder."""
    private = Path(OutputFolder.at(old).private)
    if private.is_dir():
        clean(old)
        shutil.rmtree(private, ignore_errors=True)
    _move_into(old, root)


def _move_into(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        there = target / path.name
        if path.is_dir() and not path.is_symlink() and there.is_dir():
            _move_into(path, there)
        elif not os.path.lexists(there):
            path.rename(there)
    with suppress(OSError):  # it holds a name that the new output has as well
        source.rmdir()
