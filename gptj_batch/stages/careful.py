"""CarefulRunner: runs a unit's rows so that one that ends or stops its process is found, and costs no other anything.

Units are in the engine together. A unit in which a process ended is done alone and in halves, and what the process ends
in again in halves of these, until the row is found: it ends the process a second time by itself, is left out, and has
its error. For a unit of n rows this takes at most log2(n) + 2 restarts. What happened is kept in files (`Attempts`).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from gptj_batch.backends.base import Backend, Stepping
from gptj_batch.errors import BackendError, GPTJBatchError, shorten
from gptj_batch.records.attempts import ENDINGS_OF_A_DEADLY_ROW, Attempts, History, Piece
from gptj_batch.requests import AnyRequest
from gptj_batch.results import Failed
from gptj_batch.stages.turns import Turns
from gptj_batch.stages.watchdog import Watchdog

# With so many rows left out and not one done, it is not the rows.
MAX_DEADLY_WITHOUT_SUCCESS = 3

Rows = Sequence[Sequence[AnyRequest]]
"""The requests of each row."""
Answers = list[list[Any]]
"""What was returned for each row's requests; of a row that was left out a single `Failed`."""


@dataclass(frozen=True, kw_only=True)
class RowCare:
    """How rows that end or stop a replica are dealt with."""

    attempts: Attempts
    row_timeout_s: float | None = None
    max_deadly_rows: int = 100


class CarefulRunner:
    """Run units' rows on a backend; called from several threads at once.

    end_process: takes the place of the process' end in tests
    run: what answers requests by the backend, one answer each; its own `run` if nothing else does
    """

    def __init__(
        self,
        backend: Backend,
        care: RowCare,
        end_process: Callable[[], None] | None = None,
        run: Callable[[Sequence[AnyRequest]], Sequence[Any]] | None = None,
    ) -> None:
        self._backend = backend
        self._answer = backend.run if run is None else run
        self._care = care
        self._attempts = care.attempts
        self._end_process = end_process
        self._replica = uuid4().hex
        self._turns = Turns()
        self._has_success = False
        timeout_s = care.row_timeout_s
        self._watchdog = None if timeout_s is None else Watchdog(timeout_s, self._moved, end_process)

    def run(self, unit: int, rows: Rows) -> Answers:
        """Return the results of every row of a unit.

        Raises BackendError where too many rows end their process, OutputError where the notes cannot be kept.
        """
        history = self._attempts.begin(unit, self._replica)
        if not history.is_suspect:
            whole = Piece(0, len(rows))
            with self._turns.together():
                answers, history = self._try(unit, rows, whole, history)
            if answers is not None:
                self._attempts.finish(unit)
                return answers
        with self._turns.alone():
            answers = self._run_in_pieces(unit, rows, history)
        self._attempts.finish(unit)
        return answers

    def _run_in_pieces(self, unit: int, rows: Rows, history: History) -> Answers:
        done: dict[Piece, Answers] = {}
        while waiting := [piece for piece in history.pieces(len(rows)) if piece not in done]:
            piece = waiting[0]
            if len(piece) == 1 and len(history.how(piece)) >= ENDINGS_OF_A_DEADLY_ROW:
                done[piece] = [[self._leave_out(unit, piece, rows[piece.start], history)]]
                continue
            answers, history = self._try(unit, rows, piece, history)
            if answers is not None:
                done[piece] = answers
        return [answer for piece in sorted(done) for answer in done[piece]]

    def _try(self, unit: int, rows: Rows, piece: Piece, history: History) -> tuple[Answers | None, History]:
        """Return the piece's results, or None and the history with what went wrong."""
        self._attempts.note(unit, self._replica, history, piece)
        try:
            answers = self._run(unit, rows[piece.start : piece.stop], piece, history)
        except GPTJBatchError as error:
            if not isinstance(error, BackendError):
                raise
            # The engine is dead, and a fresh process is the surest way to a fresh one.
            self._note_ending(unit, piece, history, f"the engine stopped ({_cause(error)})")
            if self._end_process is None:
                os._exit(1)
            self._end_process()
            raise
        except Exception as error:  # noqa: BLE001 - whatever one row does, the others are done
            how = f"the engine raised {type(error).__name__}"
            return None, self._note_ending(unit, piece, history, how)
        if not self._has_success:
            self._has_success = True
            self._attempts.note_success()
        return answers, history

    def _run(self, unit: int, rows: Rows, piece: Piece, history: History) -> Answers:
        requests = [request for row in rows for request in row]
        if self._watchdog is None:
            results = iter(self._answer(requests))
        else:
            how = f"nothing got done within errors.row_timeout_s ({self._care.row_timeout_s:g} s)"
            with self._watchdog.watched(len(rows), lambda: self._note_ending(unit, piece, history, how)):
                results = iter(self._answer(requests))
        return [[next(results) for _ in row] for row in rows]

    def _note_ending(self, unit: int, piece: Piece, history: History, how: str) -> History:
        history = history.with_ending(piece, how)
        self._attempts.note(unit, self._replica, history, None)
        return history

    def _leave_out(self, unit: int, piece: Piece, row: Sequence[AnyRequest], history: History) -> Failed:
        how = "; ".join(dict.fromkeys(history.how(piece)))
        number = self._attempts.note_deadly_row(unit, piece.start)
        if number > self._care.max_deadly_rows:
            raise BackendError(
                f"{number} rows each ended the replica that ran them, more than errors.max_deadly_rows "
                f"({self._care.max_deadly_rows}) allows; the last time {how}. Look at the memory and the devices of "
                "the replicas' machines, or allow more"
            )
        if number > MAX_DEADLY_WITHOUT_SUCCESS and not self._attempts.has_success:
            raise BackendError(
                f"no row could be done: {number} rows each ended the replica that ran them; the last time {how}. "
                "Look at the memory and the devices of the replicas' machines, and try a few rows with --limit"
            )
        return Failed(key=row[0].key, error=f"the row was left out: run alone, twice, {how}")

    def _moved(self) -> object:
        steps = self._backend.num_steps if isinstance(self._backend, Stepping) else 0
        return self._backend.counts(), steps


def _cause(error: BackendError) -> str:
    """Return what stopped the engine, in a word: a message of foreign code might quote a record."""
    return type(error.__cause__).__name__ if error.__cause__ is not None else shorten(error, 120)
