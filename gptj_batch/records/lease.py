"""The lease on an output: one run at a time writes there, and a run that died keeps nobody out.

Each holder has a file of its own, `lease-<epoch>.json`; the highest epoch counts. It is created whole and exclusively,
as a hard link or by a conditional PUT, so that of two runs that want an epoch one gets it. No lock of the file system
is used, since some mounted ones have none. The holder touches its file every few seconds. How old a file is, is the
difference of two times of the same store, so that the clocks of machines need not agree.

A lease is taken over at once where its process is gone from this machine, and else when it was not touched for long. A
holder that was only asleep finds a higher epoch when it wakes (`Fence.check`), and writes nothing any more.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePath
from types import TracebackType
from typing import Self
from uuid import uuid4

from gptj_batch.errors import OutputInUseError
from gptj_batch.records.output import OutputFolder, not_written

EXPIRY_S = 60.0
_TOUCHES_PER_EXPIRY = 6
_LEASE = re.compile(r"lease-(\d{8,})\.json")
_STAGED = ".lease-"
_MAX_TRIES = 20


def is_lease(name: str) -> bool:
    """Tell whether a file in the private folder is a lease, or one that is being written."""
    return _LEASE.fullmatch(name) is not None or name.startswith(_STAGED)


@dataclass(frozen=True)
class Holder:
    """The process that has a lease; `machine` and `started` make its number one that no other process ever has."""

    token: str
    host: str
    machine: str
    pid: int
    started: str
    since: str

    @classmethod
    def this_process(cls) -> "Holder":
        """Return who we are, with a token that no other lease has."""
        pid = os.getpid()
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return cls(uuid4().hex, socket.gethostname(), _machine(), pid, _started(pid) or "", since)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Holder":
        """Return the holder that a lease names. Raises KeyError where it does not."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})  # type: ignore[arg-type]

    @property
    def is_gone(self) -> bool:
        """Say whether it is known that the lease was given back, or its process has ended on this machine."""
        return not self.token or (self.machine == _machine() and _started(self.pid) != self.started)


@dataclass(frozen=True)
class Fence:
    """What tells whether a lease still holds: plain values, which workers take along."""

    output: str
    epoch: int
    token: str

    def check(self) -> None:
        """Raise OutputInUseError where somebody else has taken the lease, or it is gone."""
        folder = OutputFolder.at(self.output)
        newest = _newest_epoch(folder)
        if newest == self.epoch:
            holder = _read(folder, self.epoch)
            if holder is not None and holder.token == self.token:
                return
        taker = _read(folder, newest) if newest is not None else None
        who = (
            f"by a run on host {taker.host}, process {taker.pid}, at {taker.since}" if taker else "and has ended since"
        )
        raise OutputInUseError(
            f"output.path: {folder.root}: this run gave no sign of life for too long, and the output was taken over "
            f"{who}; this run stops and writes nothing more. Units that it finished are kept"
        )


class Lease:
    """A lease that is held until it is left; a thread keeps it alive."""

    def __init__(self, fence: Fence, note: bytes, expiry_s: float) -> None:
        self.fence = fence
        folder = OutputFolder.at(fence.output)
        self._store, self._path, self._note = folder.store, _path(folder, fence.epoch), note
        self._pause_s = expiry_s / _TOUCHES_PER_EXPIRY
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="gptj-batch-lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        # Only a file that is still ours is removed: another run may have come to the same epoch since.
        with suppress(OSError, OutputInUseError):
            self.fence.check()
            try:
                self._store.remove(self._path)
            except OSError:  # a bucket may let a run write and not delete
                self._store.write(self._path, json.dumps({**json.loads(self._note), "token": ""}).encode())

    def check(self) -> None:
        """Raise OutputInUseError where the lease is lost; see `Fence.check`."""
        self.fence.check()

    def _keep(self) -> None:
        while not self._over.wait(self._pause_s):
            try:
                self.fence.check()
                self._store.touch(self._path, self._note)
            except OutputInUseError:
                return
            except OSError:  # a server that does not answer now may do so at the next time
                continue


def take_lease(output: str | PurePath, expiry_s: float = EXPIRY_S) -> Lease:
    """Take the lease on an output, to be used in a `with` statement.

    Raises OutputInUseError, naming host, process and since when, where a run that is alive has it.
    """
    folder = OutputFolder.at(output)
    holder = Holder.this_process()
    note = json.dumps(asdict(holder)).encode()
    try:
        for _ in range(_MAX_TRIES):
            epoch = _free_epoch(folder, expiry_s)
            if folder.store.create(_path(folder, epoch), note):
                _remove_below(folder, epoch)
                return Lease(Fence(folder.root.as_posix(), epoch, holder.token), note, expiry_s)
    except OSError as error:
        raise not_written(folder.private, error) from error
    raise OutputInUseError(f"output.path: {folder.root} is being taken by other runs over and over; try again")


def _free_epoch(folder: OutputFolder, expiry_s: float) -> int:
    """Return the epoch behind the newest lease. Raises OutputInUseError where that is alive."""
    epoch = _newest_epoch(folder)
    if epoch is None:
        return 1
    path = _path(folder, epoch)
    now = folder.store.now(path)  # of a clock that is gone nothing follows: it is not the lease
    try:
        age_s = max(now - folder.store.modified(path), 0.0)
    except FileNotFoundError:  # it was given back just now
        return epoch + 1
    holder = _read(folder, epoch)
    if age_s > expiry_s or (holder is not None and holder.is_gone):
        return epoch + 1
    who = f"host {holder.host}, process {holder.pid}, since {holder.since}" if holder else f"see {path}"
    raise OutputInUseError(
        f"output.path: {folder.root} is held by another run that is alive: {who}, last sign of life {age_s:.0f} s ago. "
        "Wait until it has ended, stop it, or choose another output.path. If its machine is gone, the output is free "
        f"{expiry_s:.0f} s after the last sign of life"
    )


def _remove_below(folder: OutputFolder, epoch: int) -> None:
    for other in _epochs(folder):
        if other < epoch:
            with suppress(OSError):
                folder.store.remove(_path(folder, other))


def _epochs(folder: OutputFolder) -> list[int]:
    try:
        return [int(match[1]) for name in folder.store.names(folder.private) if (match := _LEASE.fullmatch(name))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _newest_epoch(folder: OutputFolder) -> int | None:
    return max(_epochs(folder), default=None)


def _path(folder: OutputFolder, epoch: int) -> PurePath:
    return folder.private / f"lease-{epoch:08d}.json"


def _read(folder: OutputFolder, epoch: int) -> Holder | None:
    try:
        return Holder.from_json(json.loads(folder.store.read(_path(folder, epoch))))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _machine() -> str:
    """Return what tells this machine, since it was started, and this container's processes from all others."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()} {boot.read_text().strip()} {space.stat().st_ino}"
    except OSError:
        return f"{socket.gethostname()} {uuid4().hex}"  # not known: no process of it is ever said to be gone


def _started(pid: int) -> str | None:
    """Return when a process was started, in the kernel's ticks; None for one that has ended."""
    try:
        # behind the name, which may hold anything, the state is the first field and the start the twentieth
        after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if after[0] in "ZX" else after[19]
