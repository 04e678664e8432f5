"""CarefulStage: runs a stage on the CPU so that what ends its process, time after time, is found and ends no run.

Ray starts a task whose process ended again, without end. So each stage notes the rows that it begins (`Attempts`). Rows
in which a process ended are done in halves, until the row is found that ends it twice by itself: that one gets its
error. A stage that has its unit only as a whole (reading, writing) is given up with a message that names the unit.
"""

from collections.abc import Callable
from uuid import uuid4

import pyarrow as pa

from gptj_batch.errors import BackendError, InputError
from gptj_batch.records.attempts import ENDINGS_OF_A_DEADLY_ROW, Attempts, History, Piece
from gptj_batch.records.plan import Unit
from gptj_batch.stages.careful import RowCare
from gptj_batch.stages.columns import UNIT

# As often as that may a process end while it has a unit as a whole, until the unit is to blame.
ENDINGS_OF_A_UNIT = 4

Stage = Callable[[pa.Table], pa.Table]


class CarefulStage:
    """Run a stage on a unit, in pieces where its process has ended before.

    A stage that can be given some of a unit's rows has `leave_out(rows, error)`, which makes the output of others.

    done: what the stage does to rows, as messages have it ("tokenized")    unit: finds a unit by its number
    unit_of: the number of the unit that a table is
    """

    def __init__(
        self,
        stage: Stage,
        done: str,
        care: RowCare,
        unit: Callable[[int], Unit],
        unit_of: Callable[[pa.Table], int] | None = None,
    ) -> None:
        self._stage = stage
        self._leave_out: Callable[[pa.Table, str], pa.Table] | None = getattr(stage, "leave_out", None)
        self._done = done
        self._care = care
        self._attempts: Attempts = care.attempts.of_stage(done)
        self._unit = unit
        self._unit_of = unit_of or _unit_of_rows

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return what the stage makes of the table.

        Raises what the stage raises, OutputError where notes cannot be kept, InputError for a unit and BackendError for
        more rows than `errors.max_deadly_rows` that ended their process.
        """
        if not table.num_rows:
            return self._stage(table)
        number, attempt = self._unit_of(table), uuid4().hex
        history = self._attempts.look(number, attempt)
        if not history.is_suspect or self._leave_out is None:
            made = self._whole(number, attempt, table, history)
        else:
            pieces = history.pieces(table.num_rows)  # the smallest first: little is done in vain
            done = {piece: self._piece(number, attempt, table, piece, history) for piece in pieces}
            made = pa.concat_tables([done[piece] for piece in sorted(done)])
        self._attempts.finish(number)
        return made

    def _whole(self, number: int, attempt: str, table: pa.Table, history: History) -> pa.Table:
        whole = Piece(0, table.num_rows)
        if len(history.how(whole)) >= ENDINGS_OF_A_UNIT:
            raise InputError(
                f"{self._unit(number).title} cannot be {self._done}: {len(history.how(whole))} times "
                f"{_how(history, whole)}. Look at the memory of the workers' machines and at this file; take it out of "
                "input.path to do all others"
            )
        return self._tried(number, attempt, table, whole, history)

    def _piece(self, number: int, attempt: str, table: pa.Table, piece: Piece, history: History) -> pa.Table:
        rows = table.slice(piece.start, len(piece))
        if len(piece) > 1 or len(history.how(piece)) < ENDINGS_OF_A_DEADLY_ROW:
            return self._tried(number, attempt, rows, piece, history)
        how = _how(history, piece)
        count = self._attempts.note_deadly_row(number, piece.start)
        if count > self._care.max_deadly_rows:
            raise BackendError(
                f"{count} rows each ended the process in which they were {self._done}, more than "
                f"errors.max_deadly_rows ({self._care.max_deadly_rows}) allows; the last time {how}. Look at the "
                "memory of the workers' machines, or allow more"
            )
        assert self._leave_out is not None, "only such a stage is given pieces"
        return self._leave_out(rows, f"the row was left out: {self._done} alone, twice, {how}")

    def _tried(self, number: int, attempt: str, rows: pa.Table, piece: Piece, history: History) -> pa.Table:
        self._attempts.note(number, attempt, history, piece)
        return self._stage(rows)


def _how(history: History, piece: Piece) -> str:
    return "; ".join(dict.fromkeys(history.how(piece)))


def _unit_of_rows(table: pa.Table) -> int:
    return int(table.column(UNIT)[0].as_py())
