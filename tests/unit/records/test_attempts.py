import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.records.attempts import UNKNOWN, Attempts, History, Piece, forget_attempts
from gptj_batch.records.output import OutputFolder


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(str(tmp_path), "run")


def test_a_unit_that_nobody_began_has_no_history(attempts: Attempts) -> None:
    assert attempts.begin(3, "a") == History()
    assert History().pieces(10) == [Piece(0, 10)]


def test_what_a_process_left_behind_is_where_it_ended(attempts: Attempts) -> None:
    attempts.note(3, "a", History(), Piece(0, 10))
    history = attempts.begin(3, "b")
    assert history.endings == ((Piece(0, 10), UNKNOWN),)
    assert history.pieces(10) == [Piece(0, 5), Piece(5, 10)]
    assert attempts.begin(3, "c") == history, "it was not doing anything when it ended again"


def test_ones_own_note_says_nothing(attempts: Attempts) -> None:
    attempts.note(3, "a", History(), Piece(0, 10))
    assert not attempts.begin(3, "a").is_suspect


def test_a_unit_that_is_done_is_forgotten(attempts: Attempts) -> None:
    attempts.note(3, "a", History(), Piece(0, 10))
    attempts.finish(3)
    assert attempts.begin(3, "b") == History()


def test_a_run_that_was_killed_once_makes_no_unit_suspect_and_twice_does(tmp_path: Path) -> None:
    for run, is_suspect in (("first", False), ("second", False), ("third", True)):
        attempts = Attempts(str(tmp_path), run)
        history = attempts.begin(0, run)
        assert history.is_suspect is is_suspect
        attempts.note(0, run, history, Piece(0, 8))


def test_a_run_that_stops_on_purpose_blames_nobody(attempts: Attempts) -> None:
    attempts.note(0, "a", History(), Piece(0, 8))
    blamed = History().with_ending(Piece(0, 8), UNKNOWN)
    attempts.note(1, "a", blamed, Piece(0, 4))
    attempts.forget_running()
    assert attempts.begin(0, "b") == History()
    assert attempts.begin(1, "b") == blamed


def test_a_note_that_cannot_be_read_is_none(attempts: Attempts, tmp_path: Path) -> None:
    attempts.note(0, "a", History(), Piece(0, 8))
    (OutputFolder.at(tmp_path).private / "attempts" / "unit-00000000.json").write_text("{")
    assert attempts.begin(0, "b") == History()


def test_the_smallest_pieces_come_first() -> None:
    history = History().with_ending(Piece(0, 8), "x").with_ending(Piece(4, 8), "x")
    assert history.pieces(8) == [Piece(4, 6), Piece(6, 8), Piece(0, 4)]


@given(num_rows=st.integers(1, 600), data=st.data())
def test_a_deadly_row_is_found_in_log2_and_two_endings_and_all_others_are_done(
    num_rows: int, data: st.DataObject
) -> None:
    deadly = data.draw(st.integers(0, num_rows - 1))
    history, num_endings = History().with_ending(Piece(0, num_rows), UNKNOWN), 1
    while True:
        ends = next((p for p in history.pieces(num_rows) if p.start <= deadly < p.stop), None)
        assert ends is not None
        if len(ends) == 1 and len(history.how(ends)) == 2:
            break
        history, num_endings = history.with_ending(ends, UNKNOWN), num_endings + 1
    assert num_endings <= math.ceil(math.log2(num_rows)) + 2
    rows = [row for piece in history.pieces(num_rows) for row in range(piece.start, piece.stop)]
    assert sorted(rows) == list(range(num_rows))


def test_deadly_rows_are_counted_once_each(attempts: Attempts) -> None:
    attempts.begin(0, "a")
    assert [attempts.note_deadly_row(*row) for row in ((0, 1), (0, 1), (4, 1))] == [1, 1, 2]


def test_success_is_known_by_a_note_or_by_a_unit(attempts: Attempts, tmp_path: Path) -> None:
    attempts.begin(0, "a")
    assert not attempts.has_success
    attempts.note_success()
    assert attempts.has_success
    forget_attempts(tmp_path)
    assert not attempts.has_success
    units = OutputFolder.at(tmp_path).units
    units.mkdir()
    (units / "unit-00000000.parquet").touch()
    assert attempts.has_success
