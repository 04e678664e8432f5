"""Attempts at a unit: what a process that is gone was doing when it went, so that the row to blame can be found.

A replica notes in a small file which rows of a unit it is about to do, and removes the file when the unit is done. A
note that another process left behind says that this process ended in the middle of these rows. So do the other stages.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.store import Store

# How often a row must have ended its process all by itself until it is left out: once may be a machine that went away.
ENDINGS_OF_A_DEADLY_ROW = 2
# A whole run may be killed in the middle of anything; when that hits a unit twice, it looks like its doing.
LOST_RUNS_OF_A_SUSPECT = 2
_FOLDER = "attempts"
UNKNOWN = "the process ended (killed, aborted, or out of memory)"


@dataclass(frozen=True, order=True)
class Piece:
    """Rows start to stop (exclusive) of a unit, counted among those that are asked of the model."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def halves(self) -> tuple["Piece", "Piece"]:
        """Return the piece in two."""
        middle = (self.start + self.stop) // 2
        return Piece(self.start, middle), Piece(middle, self.stop)


@dataclass(frozen=True, kw_only=True)
class History:
    """What earlier attempts at a unit came to: which pieces a process ended in, and how."""

    endings: tuple[tuple[Piece, str], ...] = ()
    num_lost_runs: int = 0

    @property
    def is_suspect(self) -> bool:
        """Say whether the unit may hold a row that ends its process."""
        return bool(self.endings)

    def pieces(self, num_rows: int) -> list[Piece]:
        """Return the pieces that the unit is to be done in: what a process ended in is halved.

        The smallest come first, which are the likeliest to hold such a row: little is done in vain then.
        """
        return sorted(self._split(Piece(0, num_rows)), key=lambda piece: (len(piece), piece.start))

    def how(self, piece: Piece) -> list[str]:
        """Return how processes ended in a piece."""
        return [how for ended, how in self.endings if ended == piece]

    def with_ending(self, piece: Piece, how: str) -> "History":
        """Return the history with one more ending."""
        return replace(self, endings=(*self.endings, (piece, how)))

    def _split(self, piece: Piece) -> Iterator[Piece]:
        if len(piece) > 1 and self.how(piece):
            for half in piece.halves():
                yield from self._split(half)
        else:
            yield piece


@dataclass(frozen=True)
class Attempts:
    """The notes of one run, in its output folder; plain values, which replicas take along."""

    output: str
    run: str
    stage: str = ""

    def of_stage(self, name: str) -> "Attempts":
        """Return the notes of another stage than the replica's; each has a folder of its own in the notes'."""
        return replace(self, stage=name)

    def look(self, unit: int, process: str) -> History:
        """Return what became of attempts by other processes than this one."""
        return self._after(self._read(unit), process)

    def begin(self, unit: int, replica: str) -> History:
        """Return what became of earlier attempts, and note that this replica has the unit now. Raises OutputError."""
        history = self.look(unit, replica)
        self.note(unit, replica, history, None)
        return history

    def note(self, unit: int, replica: str, history: History, running: Piece | None) -> None:
        """Note which rows are about to be done, None for none. Raises OutputError."""
        note = {
            "run": self.run,
            "replica": replica,
            "running": None if running is None else [running.start, running.stop],
            "lost_runs": history.num_lost_runs,
            "endings": [[piece.start, piece.stop, how] for piece, how in history.endings],
        }
        file = self._file(unit)
        try:
            self._store.write(file, json.dumps(note).encode())
        except OSError as error:
            raise not_written(file, error) from error

    def finish(self, unit: int) -> None:
        """Forget a unit that is done."""
        with suppress(OSError):
            self._store.remove(self._file(unit))

    def note_deadly_row(self, unit: int, row: int) -> int:
        """Note that a row was left out for ending its process, and return how many there are. Raises OutputError."""
        file = self._folder / f"deadly-{unit:08d}-{row:06d}"
        try:
            self._store.write(file, b"")
            return sum(name.startswith("deadly-") for name in self._store.names(self._folder))
        except OSError as error:
            raise not_written(file, error) from error

    def note_success(self) -> None:
        """Note that rows were done: not everything that is tried ends its process."""
        with suppress(OSError):
            self._store.write(self._folder / "success", b"")

    @property
    def has_success(self) -> bool:
        """Say whether any row was done."""
        folder = OutputFolder.at(self.output)
        return self._store.exists(self._folder / "success") or bool(folder.unit_indices())

    def forget_running(self) -> None:
        """Take back what is noted as running: a run that stops on purpose has nobody to blame for it."""
        for file in self._notes():
            note = self._load(file)
            if note.get("run") != self.run:
                continue
            if not note.get("endings"):
                with suppress(OSError):
                    self._store.remove(file)
            else:
                unit = int(file.stem.partition("-")[2])
                with suppress(OutputError):
                    self.note(unit, note.get("replica", ""), _history(note), None)
        for folder, _ in self._store.walk(self._folder, lambda name: True)[1:] if not self.stage else ():
            self.of_stage(folder.name).forget_running()

    @property
    def _store(self) -> Store:
        return OutputFolder.at(self.output).store

    @property
    def _folder(self) -> PurePath:
        return OutputFolder.at(self.output).private / _FOLDER / self.stage

    def _file(self, unit: int) -> PurePath:
        return self._folder / f"unit-{unit:08d}.json"

    def _notes(self) -> list[PurePath]:
        try:
            names = self._store.names(self._folder)
        except OSError:
            return []
        return [self._folder / name for name in names if name.startswith("unit-") and name.endswith(".json")]

    def _read(self, unit: int) -> dict[str, Any]:
        return self._load(self._file(unit))

    def _load(self, file: PurePath) -> dict[str, Any]:
        try:
            note = json.loads(self._store.read(file))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _after(self, note: Mapping[str, Any], replica: str) -> History:
        """Return the history that a note tells; rows that a process which is gone was doing are one more ending."""
        history = _history(note)
        running = note.get("running")
        if running is None or note["replica"] == replica:
            return history
        if note["run"] != self.run:
            history = replace(history, num_lost_runs=history.num_lost_runs + 1)
            if history.num_lost_runs < LOST_RUNS_OF_A_SUSPECT:
                return history
        return history.with_ending(Piece(*running), UNKNOWN)


def forget_attempts(output: str | PurePath) -> None:
    """Remove the notes of an output that is complete."""
    folder = OutputFolder.at(output)
    with suppress(OSError):
        folder.store.remove(folder.private / _FOLDER)


def _history(note: Mapping[str, Any]) -> History:
    endings = tuple((Piece(start, stop), str(how)) for start, stop, how in note.get("endings", []))
    return History(endings=endings, num_lost_runs=note.get("lost_runs", 0))
