from pathlib import Path

import pyarrow as pa
import pytest

from gptj_batch.errors import BackendError, InputError
from gptj_batch.records.attempts import Attempts, forget_attempts
from gptj_batch.records.plan import Unit
from gptj_batch.stages.careful import RowCare
from gptj_batch.stages.careful_stage import CarefulStage, Stage
from gptj_batch.stages.columns import UNIT

NUM_ROWS = 40
OUT = "out"


class Ended(BaseException):
    """Stands for the end of the process."""


class Whole:
    """A stage that adds a column, and ends its process at some rows."""

    def __init__(self, *bad: int) -> None:
        self.bad = set(bad)
        self.sizes: list[int] = []

    def __call__(self, table: pa.Table) -> pa.Table:
        self.sizes.append(table.num_rows)
        ids = table.column("id").to_pylist()
        if self.bad & set(ids):
            raise Ended
        return table.append_column(OUT, pa.array([str(number) for number in ids], pa.string()))


class InPieces(Whole):
    """One that takes some of a unit's rows as well."""

    def leave_out(self, table: pa.Table, error: str) -> pa.Table:
        return table.append_column(OUT, pa.array([error] * table.num_rows, pa.string()))


def rows(unit: int = 3, num_rows: int = NUM_ROWS) -> pa.Table:
    return pa.table({"id": pa.array(range(num_rows), pa.int64()), UNIT: pa.array([unit] * num_rows, pa.int64())})


def careful(folder: Path, stage: Stage, max_deadly_rows: int = 100, run: str = "run") -> CarefulStage:
    care = RowCare(attempts=Attempts(str(folder), run), max_deadly_rows=max_deadly_rows)
    return CarefulStage(
        stage, "tokenized", care, lambda index: Unit(index, "/a.parquet", "parquet", 0, NUM_ROWS, 40, 9, pa.schema([]))
    )


def run_until_done(stage: CarefulStage) -> tuple[pa.Table, int]:
    """Run as Ray does, again after every end of the process; return the table and how many ended."""
    for num_ended in range(100):
        try:
            return stage(rows()), num_ended
        except Ended:
            continue
    raise AssertionError("it goes on for ever")


def notes(folder: Path) -> list[Path]:
    return list((folder / "_gptj_batch" / "attempts").rglob("unit-*"))


def test_rows_without_trouble_are_done_at_once_and_leave_no_note(tmp_path: Path) -> None:
    stage = InPieces()
    made, num_ended = run_until_done(careful(tmp_path, stage))
    assert (num_ended, stage.sizes) == (0, [NUM_ROWS])
    assert made.column(OUT).to_pylist() == [str(row) for row in range(NUM_ROWS)]
    assert not notes(tmp_path)


@pytest.mark.parametrize("bad", [(0,), (39,), (17,), (3, 4), (0, 20, 39)])
def test_a_row_that_ends_its_process_is_left_out_and_all_others_are_done(tmp_path: Path, bad: tuple[int, ...]) -> None:
    made, num_ended = run_until_done(careful(tmp_path, InPieces(*bad)))
    error = "the row was left out: tokenized alone, twice, the process ended (killed, aborted, or out of memory)"
    assert made.column(OUT).to_pylist() == [error if row in bad else str(row) for row in range(NUM_ROWS)]
    assert num_ended <= 8 * len(bad)  # log2(40) + 2
    assert not notes(tmp_path)


def test_a_unit_that_is_only_had_as_a_whole_is_given_up_and_named(tmp_path: Path) -> None:
    stage = Whole(7)
    with pytest.raises(InputError, match=r"unit 3 \(/a\.parquet, rows 0 to 40\) cannot be tokenized: 4 times the proc"):
        run_until_done(careful(tmp_path, stage))
    assert len(stage.sizes) == 4


def test_a_machine_that_goes_away_once_costs_no_row(tmp_path: Path) -> None:
    for stage in (Whole(1), InPieces(1)):
        kept = careful(tmp_path, stage)
        with pytest.raises(Ended):
            kept(rows())
        stage.bad.clear()
        assert kept(rows()).column(OUT).to_pylist() == [str(row) for row in range(NUM_ROWS)]


def test_more_deadly_rows_than_allowed_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        BackendError, match=r"2 rows each ended the process in which they were tokenized.*deadly_rows \(1\)"
    ):
        run_until_done(careful(tmp_path, InPieces(3, 20), max_deadly_rows=1))


def test_a_run_that_stops_on_purpose_blames_nobody(tmp_path: Path) -> None:
    with pytest.raises(Ended):
        careful(tmp_path, InPieces(1))(rows())
    assert notes(tmp_path)
    Attempts(str(tmp_path), "run").forget_running()
    assert not notes(tmp_path)


def test_the_notes_of_two_stages_are_kept_apart_and_go_together(tmp_path: Path) -> None:
    attempts = Attempts(str(tmp_path), "run")
    with pytest.raises(Ended):
        careful(tmp_path, InPieces(1))(rows())
    assert not attempts.look(3, "replica").is_suspect
    assert attempts.of_stage("tokenized").look(3, "another").is_suspect
    forget_attempts(tmp_path)
    assert not attempts.of_stage("tokenized").look(3, "another").is_suspect


def test_no_rows_are_no_unit(tmp_path: Path) -> None:
    assert careful(tmp_path, InPieces())(rows(num_rows=0)).num_rows == 0
