import numpy as np
import pytest

from gptj_batch.records import marks as module
from gptj_batch.records.marks import MarkMaker
from gptj_batch.records.text import Records


def made(num_rows: int, piece_rows: int = 100):
    maker = MarkMaker()
    for row in range(0, num_rows, piece_rows):
        starts = np.arange(min(piece_rows, num_rows - row)) * 10
        maker.add(Records(b"", starts, starts + 9, row * 10, row, 1))
    return maker.marks()


def test_every_so_many_rows_have_a_mark():
    marks = made(1000)
    assert (marks.step, marks.offsets.tolist()) == (256, [0, 2560, 5120, 7680])
    assert [marks.before(row) for row in (0, 255, 256, 999)] == [(0, 0), (0, 0), (256, 2560), (768, 7680)]


def test_the_marks_of_a_long_file_stand_further_apart(monkeypatch):
    monkeypatch.setattr(module, "_MAX_MARKS", 10)
    marks = made(5000, piece_rows=37)
    assert (marks.step, marks.offsets.tolist()) == (512, list(range(0, 50_000, 5120)))


@pytest.mark.parametrize("unit", [32, 100, 256, 512, 700, 1024])
def test_thinned_marks_lead_to_every_unit(unit):
    marks = made(5000)
    thinned = marks.thinned(unit, 4000)
    assert len(thinned.offsets) <= len(marks.offsets)
    for start in range(0, 4000, unit):
        row, offset = thinned.before(start)
        assert offset == row * 10 and start - 256 < row <= start


def test_a_unit_that_is_a_multiple_of_the_step_has_one_mark():
    assert made(5000).thinned(512, 1500).offsets.tolist() == [0, 5120, 10240]
