from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gptj_batch.backends.fake import FakeBackend
from gptj_batch.errors import BackendError
from gptj_batch.records.attempts import Attempts, History, Piece
from gptj_batch.requests import AnyRequest, Request
from gptj_batch.results import AnyResult, Failed
from gptj_batch.stages.careful import Answers, CarefulRunner, RowCare

BAD, NUM_ROWS = 299, 40


class Ended(BaseException):
    """Stands for the end of the process."""


class Trouble(FakeBackend):
    """Does something for every call with a bad token, and keeps the size of every call."""

    def __init__(self, trouble: Callable[[], None]) -> None:
        super().__init__(300)
        self.trouble = trouble
        self.sizes: list[int] = []

    def run(self, requests: Sequence[AnyRequest]) -> list[AnyResult]:
        self.sizes.append(len(requests))
        if any(BAD in request.prompt_token_ids for request in requests):
            self.trouble()
        return super().run(requests)


def raising(error: BaseException) -> Callable[[], None]:
    def trouble() -> None:
        raise error

    return trouble


def rows(*bad: int, num_rows: int = NUM_ROWS) -> list[list[AnyRequest]]:
    """Rows of two requests each."""
    return [
        [Request(key=f"{row}", prompt_token_ids=[row + 1, sample, *([BAD] if row in bad else [])]) for sample in (0, 1)]
        for row in range(num_rows)
    ]


def run_until_done(
    folder: Path, backend: Trouble, wanted: list[list[AnyRequest]], unit: int = 0
) -> tuple[Answers, int]:
    """Run a unit as Ray does, in a new process after every one that ended; return the answers and how many ended."""
    care = RowCare(attempts=Attempts(str(folder), "run"))
    for num_ended in range(100):
        runner = CarefulRunner(backend, care, end_process=raising(Ended()))
        try:
            return runner.run(unit, wanted), num_ended
        except Ended:
            continue
    raise AssertionError("it goes on for ever")


def failed_rows(answers: Answers) -> list[int]:
    return [row for row, results in enumerate(answers) if isinstance(results[0], Failed)]


def test_rows_without_trouble_are_done_at_once_and_leave_no_note(tmp_path: Path) -> None:
    backend = Trouble(raising(AssertionError()))
    answers, num_ended = run_until_done(tmp_path, backend, rows())
    assert (num_ended, backend.sizes) == (0, [2 * NUM_ROWS])
    assert [[result.key for result in row] for row in answers] == [[f"{row}"] * 2 for row in range(NUM_ROWS)]
    assert not list((tmp_path / "_gptj_batch" / "attempts").glob("unit-*"))


@pytest.mark.parametrize("bad", [(0,), (39,), (17,), (3, 4), (0, 20, 39)])
def test_a_row_that_ends_its_process_is_left_out_and_all_others_are_done(tmp_path: Path, bad: tuple[int, ...]) -> None:
    backend = Trouble(raising(Ended()))
    answers, num_ended = run_until_done(tmp_path, backend, rows(*bad))
    assert tuple(failed_rows(answers)) == bad
    expected = FakeBackend(300).run([request for row in rows(*bad) for request in row])
    good = [row for row in range(NUM_ROWS) if row not in bad]
    assert [answers[row] for row in good] == [expected[2 * row : 2 * row + 2] for row in good]
    assert num_ended <= 8 * len(bad)  # log2(40) + 2
    error = answers[bad[0]][0]
    assert isinstance(error, Failed) and "the row was left out: run alone, twice, the process ended" in error.error


def test_too_much_for_the_memory_is_done_in_halves_without_a_restart(tmp_path: Path) -> None:
    class Small(Trouble):
        def run(self, requests: Sequence[AnyRequest]) -> list[AnyResult]:
            self.sizes.append(len(requests))
            if len(requests) > 25:
                raise MemoryError
            return FakeBackend.run(self, requests)

    backend = Small(raising(AssertionError()))
    answers, num_ended = run_until_done(tmp_path, backend, rows())
    assert (num_ended, failed_rows(answers)) == (0, [])
    assert max(size for size in backend.sizes if size <= 25) == 20


def test_an_error_of_one_row_in_the_engine_is_that_rows_error(tmp_path: Path) -> None:
    answers, num_ended = run_until_done(tmp_path, Trouble(raising(ZeroDivisionError("secret"))), rows(5))
    assert (num_ended, failed_rows(answers)) == (0, [5])
    error = answers[5][0]
    assert isinstance(error, Failed)
    assert error.error == "the row was left out: run alone, twice, the engine raised ZeroDivisionError"


def test_a_dead_engine_ends_its_process_and_the_row_to_blame_is_found(tmp_path: Path) -> None:
    answers, num_ended = run_until_done(tmp_path, Trouble(raising(BackendError("the engine stopped: x"))), rows(5))
    assert failed_rows(answers) == [5] and 0 < num_ended <= 8


def test_where_no_row_at_all_can_be_done_the_run_ends_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no row could be done: 4 rows each ended the replica.*--limit"):
        run_until_done(tmp_path, Trouble(raising(Ended())), rows(*range(NUM_ROWS)))


def test_more_deadly_rows_than_allowed_end_the_run(tmp_path: Path) -> None:
    care = RowCare(attempts=Attempts(str(tmp_path), "run"), max_deadly_rows=2)
    runner = CarefulRunner(Trouble(raising(MemoryError())), care)
    with pytest.raises(BackendError, match=r"3 rows each ended .* errors\.max_deadly_rows \(2\)"):
        runner.run(0, rows(1, 11, 21))


def test_a_suspect_unit_is_done_alone(tmp_path: Path) -> None:
    attempts = Attempts(str(tmp_path), "run")
    attempts.note(0, "gone", History(), Piece(0, NUM_ROWS))
    backend = Trouble(raising(AssertionError()))
    CarefulRunner(backend, RowCare(attempts=attempts)).run(0, rows())
    assert backend.sizes == [NUM_ROWS, NUM_ROWS]


def test_an_output_that_cannot_be_noted_in_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "_gptj_batch").touch()
    with pytest.raises(Exception, match=r"output\.path: .* cannot be written"):
        run_until_done(tmp_path, Trouble(raising(AssertionError())), rows())
