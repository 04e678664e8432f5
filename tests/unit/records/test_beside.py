import errno
import os
import shutil
import threading
import time

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import gptj_batch.records.beside as module
from gptj_batch.errors import OutputError
from gptj_batch.records.beside import begin_beside, beside, can_build_beside, change_places, settle
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.progress import save_plan
from gptj_batch.records.publish import publish
from gptj_batch.records.write import write_unit

from .crash import crashes

NUM_UNITS, UNIT_ROWS = 2, 5
FORM = PartForm(target_file_bytes=1)  # a part a unit
BY_VALUE = PartForm(target_file_bytes=10**9, partition_by=("by",))


def make(folder, value, form=FORM):
    save_plan(folder, {"value": value})
    for index in range(NUM_UNITS):
        write_unit(pa.table({"value": [value] * UNIT_ROWS, "by": ["a"] * UNIT_ROWS}), folder, index)
    publish(folder, NUM_UNITS, form)


def overwrite(output, value, form=FORM):
    settle(output)
    begin_beside(output)
    make(beside(output), value, form)
    change_places(output)


def values(output):
    return ds.dataset(output, partitioning="hive").to_table(columns=["value"]).column(0).to_pylist()


def whole(value):
    return [value] * NUM_UNITS * UNIT_ROWS


@pytest.fixture(params=["exchange", "two steps"])
def way(request, monkeypatch):
    if request.param == "two steps":

        def not_supported(one, other):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(module, "_rename_exchange", not_supported)
    return request.param


@pytest.mark.parametrize("forms", [(FORM, FORM), (BY_VALUE, FORM), (FORM, BY_VALUE)], ids=["flat", "to flat", "to by"])
def test_the_old_output_is_there_until_the_new_one_takes_its_place(tmp_path, way, forms):
    output = tmp_path / "out"
    make(output, 1, forms[0])
    assert can_build_beside(output)
    begin_beside(output)
    make(beside(output), 2, forms[1])
    assert values(output) == whole(1)
    change_places(output)
    assert values(output) == whole(2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert OutputFolder.at(output).success.exists() and OutputFolder.at(output).generation == 1


def test_no_name_of_an_old_part_is_one_of_a_new_part(tmp_path):
    make(tmp_path / "out", 0)
    seen = set()
    for value in (1, 2, 3):
        names = {part.name for part in OutputFolder.at(tmp_path / "out").parts()}
        assert len(names) == NUM_UNITS and not names & seen
        seen |= names
        overwrite(tmp_path / "out", value)
    assert OutputFolder.at(tmp_path / "out").parts()[0].name == "part-00000-3.parquet"


@pytest.mark.parametrize(
    "form", [FORM, pytest.param(BY_VALUE, marks=pytest.mark.extended)], ids=["flat", "partitioned"]
)
def test_killed_at_any_step_readers_see_old_or_new_and_the_next_run_finishes(tmp_path, way, form):
    make(tmp_path / "old", 1, form)
    (tmp_path / "old" / "_notes.txt").write_text("mine")

    def output(number):
        return tmp_path / str(number) / "out"

    for number in range(1, 250):
        shutil.copytree(tmp_path / "old", output(number))
    seen = []
    for number in crashes(lambda number: overwrite(output(number), 2, form)):
        if output(number).exists():
            seen.append(values(output(number))[0])
            assert values(output(number)) == whole(seen[-1])
        else:
            assert way == "two steps"
        settle(output(number))
        seen.append(values(output(number))[0])
        assert values(output(number)) == whole(seen[-1])
        if seen[-1] == 1:
            overwrite(output(number), 2, form)
        assert values(output(number)) == whole(2)
        assert [path.name for path in output(number).parent.iterdir()] == ["out"]
        assert (output(number) / "_notes.txt").read_text() == "mine"
    assert seen == sorted(seen) and set(seen) == {1, 2}


def test_a_reader_at_any_time_sees_all_of_one_output(tmp_path):
    output, seen, stop = tmp_path / "out", set(), threading.Event()
    make(output, 0)

    def read():
        while not stop.is_set():
            try:
                rows = values(output)
            except (FileNotFoundError, pa.ArrowInvalid):
                continue  # it listed the old names, and looked for them too late: none is there, not even a schema
            assert rows == whole(rows[0])
            seen.add(rows[0])

    failures = []
    thread = threading.Thread(target=lambda: failures.extend(_caught(read)))
    thread.start()
    for value in range(1, 15):
        overwrite(output, value)
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert not failures and len(seen) > 2


def _caught(action):
    try:
        action()
    except BaseException as error:
        return [error]
    return []


def test_what_others_put_there_goes_along(tmp_path, way):
    output = tmp_path / "out"
    make(output, 1, BY_VALUE)
    for name in ("notes.txt", "by=a/README", "more/deep/file", ".hidden"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("mine")
    overwrite(output, 2, BY_VALUE)
    for name in ("notes.txt", "by=a/README", "more/deep/file", ".hidden"):
        assert (output / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lease_is_held_on_after_the_exchange(tmp_path, way):
    output = tmp_path / "out"
    make(output, 1)
    lease = output / "_gptj_batch" / "lease-00000007.json"
    lease.write_text("held")
    number = lease.stat().st_ino
    overwrite(output, 2)
    assert lease.stat().st_ino == number and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_the_output_stays_a_link(tmp_path):
    make(tmp_path / "disk" / "real", 1)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    overwrite(tmp_path / "out", 2)
    assert (tmp_path / "out").is_symlink() and values(tmp_path / "out") == whole(2)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


def test_an_output_that_is_not_complete_is_not_built_beside(tmp_path):
    assert not can_build_beside(tmp_path / "out")
    make(tmp_path / "out", 1)
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert not can_build_beside(tmp_path / "out")


def test_an_exchange_that_is_refused_says_so_and_keeps_both(tmp_path, monkeypatch):
    output = tmp_path / "out"
    make(output, 1)

    def busy(one, other):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch:
        patch.setattr(module, "_rename_exchange", busy)
        with pytest.raises(OutputError, match=r"output\.path: .*/out cannot be written: .*busy"):
            overwrite(output, 2)
    assert values(output) == whole(1) and values(beside(output)) == whole(2)
    change_places(output)
    assert values(output) == whole(2)


def test_settling_where_nothing_was_cut_off_changes_nothing(tmp_path):
    settle(tmp_path / "out")
    make(tmp_path / "out", 1)
    settle(tmp_path / "out")
    assert values(tmp_path / "out") == whole(1)
