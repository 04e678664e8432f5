import pickle
import time

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.records.footers import InputFile, InputFiles
from gptj_batch.records.plan import UnitPlan, plan_units

SCHEMA = pa.schema([("id", pa.int64())])


def planned(num_rows: list[int], max_rows: int, limit: int | None = None) -> UnitPlan:
    files = tuple(InputFile(f"/data/{i}.parquet", "parquet", rows, 100, 0, SCHEMA) for i, rows in enumerate(num_rows))
    return plan_units(InputFiles(files, (), SCHEMA), max_rows, limit)


def ranges(plan: UnitPlan) -> list[tuple[str, int, int]]:
    units = [plan.unit(index) for index in range(plan.num_units)]
    assert [unit.index for unit in units] == list(range(plan.num_units))
    return [(unit.path, unit.start, unit.stop) for unit in units]


def test_a_file_is_cut_into_units_of_at_most_the_given_rows():
    assert ranges(planned([5, 2], 2)) == [
        ("/data/0.parquet", 0, 2),
        ("/data/0.parquet", 2, 4),
        ("/data/0.parquet", 4, 5),
        ("/data/1.parquet", 0, 2),
    ]


def test_a_limit_cuts_inside_a_file_and_leaves_out_those_behind_it():
    plan = planned([5, 4, 9], 3, limit=7)
    assert plan.num_rows == 7
    assert ranges(plan)[-1] == ("/data/1.parquet", 0, 2)


def test_a_limit_above_the_input_changes_nothing():
    assert ranges(planned([5], 3, limit=100)) == ranges(planned([5], 3))


def test_files_without_rows_have_no_units():
    assert [path for path, _, _ in ranges(planned([0, 3, 0, 0, 1, 0], 3))] == ["/data/1.parquet", "/data/4.parquet"]


def test_an_input_without_rows_is_one_unit_without_rows():
    assert [(start, stop) for _, start, stop in ranges(planned([0, 0], 3))] == [(0, 0)]
    assert [(start, stop) for _, start, stop in ranges(planned([5], 3, limit=0))] == [(0, 0)]


def test_a_unit_knows_what_its_file_was_when_it_was_planned():
    unit = planned([5], 3, limit=4).unit(1)
    assert (unit.file_rows, unit.file_bytes, unit.num_rows) == (5, 100, 1)


def test_a_hundred_thousand_units_are_small_to_send_and_quick_to_look_up():
    plan = planned([1_000_000] * 200, 2000)
    assert plan.num_units == 100_000
    assert len(pickle.dumps(plan)) < 20_000
    sent = pickle.loads(pickle.dumps(plan))
    begin = time.perf_counter()
    assert all(sent.unit(index) == plan.unit(index) for index in range(0, 100_000, 10))
    assert time.perf_counter() - begin < 5


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 20), st.none() | st.integers(0, 300))
def test_units_cover_the_rows_once_and_in_order(num_rows, max_rows, limit):
    plan = planned(num_rows, max_rows, limit)
    covered = [(path, row) for path, start, stop in ranges(plan) for row in range(start, stop)]
    everything = [(f"/data/{i}.parquet", row) for i, rows in enumerate(num_rows) for row in range(rows)]
    assert covered == everything[:limit]
    assert plan.num_rows == len(covered)
    assert all(stop - start <= max_rows for _, start, stop in ranges(plan))
