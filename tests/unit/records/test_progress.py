import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gptj_batch.errors import OutputError
from gptj_batch.records.footers import InputFile, InputFiles
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.plan import plan_units
from gptj_batch.records.progress import (
    clean,
    committed_units,
    contents,
    differences,
    load_plan,
    pending_units,
    save_plan,
)
from gptj_batch.records.publish import publish
from gptj_batch.records.write import write_unit

from .crash import crashes
from .tables import numbered

SCHEMA = numbered(0, 1).schema
PLAN = plan_units(InputFiles((InputFile("/a.parquet", "parquet", 50, 1, 0, SCHEMA),), (), SCHEMA), 10)
FINGERPRINT = {"task": {"kind": "generate", "prompt": "{{ text }}"}, "rows": 50}


def begin(output: Path, units: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
    save_plan(output, FINGERPRINT)
    for index in units:
        write_unit(numbered(index * 10, index * 10 + 10), output, index)


def test_units_with_a_file_are_committed_and_the_others_pending(tmp_path):
    begin(tmp_path, (3, 1))
    assert committed_units(tmp_path, PLAN).tolist() == [1, 3]
    pending = pending_units(tmp_path, PLAN)
    assert pending.tolist() == [0, 2, 4] and pending.dtype == np.int32


def test_everything_is_pending_in_a_folder_that_is_not_there(tmp_path):
    assert pending_units(tmp_path / "out", PLAN).tolist() == [0, 1, 2, 3, 4]


def test_staged_files_and_units_behind_the_plan_do_not_count(tmp_path):
    begin(tmp_path, (4, 5))
    (OutputFolder.at(tmp_path).staging / "unit-00000000-abc.parquet").touch()
    assert committed_units(tmp_path, PLAN).tolist() == [4]


def test_nothing_is_pending_once_the_output_is_complete(tmp_path):
    begin(tmp_path)
    publish(tmp_path, 5, PartForm(target_file_bytes=10**6))
    assert pending_units(tmp_path, PLAN).tolist() == []
    assert committed_units(tmp_path, PLAN).tolist() == [0, 1, 2, 3, 4]


def test_contents_tells_ours_from_others(tmp_path):
    assert contents(tmp_path / "out") == "nothing" and contents(tmp_path) == "nothing"
    (tmp_path / ".snapshot").mkdir()
    assert contents(tmp_path) == "nothing"
    (tmp_path / "part-00000.parquet").touch()
    assert contents(tmp_path) == "foreign" and contents(tmp_path / "part-00000.parquet") == "foreign"
    begin(tmp_path)
    assert contents(tmp_path) == "ours"


def test_clean_removes_what_is_ours_and_nothing_else(tmp_path):
    begin(tmp_path)
    publish(tmp_path, 5, PartForm(target_file_bytes=1))
    for name in ("notes.txt", "part-old.parquet"):
        (tmp_path / name).touch()
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "part-old.parquet"]


def test_clean_of_nothing_does_nothing(tmp_path):
    clean(tmp_path / "out")
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_clean_refuses_a_folder_that_somebody_else_made(tmp_path):
    for name in ("part-00000.parquet", "_SUCCESS"):  # as Spark writes it
        (tmp_path / name).touch()
    with pytest.raises(OutputError, match=r"is not an output of gptj-batch, so nothing in it is overwritten"):
        clean(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_clean_never_follows_a_link(tmp_path):
    (tmp_path / "treasure").mkdir()
    (tmp_path / "treasure" / "gold.txt").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "_gptj_batch").symlink_to(tmp_path / "treasure")
    with pytest.raises(OutputError):
        clean(tmp_path / "linked")
    begin(tmp_path / "out")
    shutil.rmtree(OutputFolder.at(tmp_path / "out").units)
    OutputFolder.at(tmp_path / "out").units.symlink_to(tmp_path / "treasure")
    clean(tmp_path / "out")
    assert (tmp_path / "treasure" / "gold.txt").exists() and list((tmp_path / "out").iterdir()) == []


def test_a_clean_killed_at_any_step_never_leaves_results_without_what_made_them(tmp_path):
    begin(tmp_path / "made")
    publish(tmp_path / "made", 5, PartForm(target_file_bytes=1))
    begin(tmp_path / "made")  # complete, and with units besides
    for number in range(1, 100):
        shutil.copytree(tmp_path / "made", tmp_path / str(number))
    for number in crashes(lambda number: clean(tmp_path / str(number))):
        output = tmp_path / str(number)
        folder = OutputFolder.at(output)
        plan = load_plan(output)
        assert plan == FINGERPRINT or (plan is None and not folder.unit_indices() and not folder.parts())
        clean(output)
        assert list(output.iterdir()) == []


def test_the_plan_comes_back_as_it_was_saved(tmp_path):
    assert load_plan(tmp_path / "out") is None
    save_plan(tmp_path / "out", FINGERPRINT)
    assert load_plan(tmp_path / "out") == FINGERPRINT


def test_results_without_a_plan_are_not_taken_for_ones_own(tmp_path):
    begin(tmp_path)
    OutputFolder.at(tmp_path).plan.unlink()
    with pytest.raises(OutputError, match=r"has results but no plan\.json.*on_exists=overwrite"):
        load_plan(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_plan_that_cannot_be_read_is_named(tmp_path, content):
    begin(tmp_path)
    OutputFolder.at(tmp_path).plan.write_text(content)
    with pytest.raises(OutputError, match=r"plan\.json cannot be read.*on_exists=overwrite"):
        load_plan(tmp_path)


def test_differences_name_every_field_with_both_values():
    new = {"task": {"kind": "generate", "prompt": "x" * 500}, "model": "demo"}
    lines = differences(FINGERPRINT, new)
    assert lines[0] == 'model: nothing -> "demo"' and lines[1] == "rows: 50 -> nothing"
    assert lines[2].startswith('task.prompt: "{{ text }}" -> "xxx') and len(lines[2]) < 130 and len(lines) == 3


def test_a_fingerprint_that_went_through_json_is_no_difference(tmp_path):
    fingerprint = {"labels": ("a", "b"), "nested": {"empty": {}, "none": None}}
    save_plan(tmp_path, fingerprint)
    assert differences(load_plan(tmp_path) or {}, fingerprint) == []


def test_a_hundred_thousand_units_are_one_small_array(tmp_path):
    units = OutputFolder.at(tmp_path).units
    units.mkdir(parents=True)
    for index in range(0, 6_000, 2):
        os.close(os.open(units / f"unit-{index:08d}.parquet", os.O_CREAT))
    file = InputFile("/a.parquet", "parquet", 100_000, 1, 0, pa.schema([]))
    plan = plan_units(InputFiles((file,), (), pa.schema([])), 1)
    pending = pending_units(tmp_path, plan)
    assert pending.nbytes < 400_000 and len(pending) == 97_000
