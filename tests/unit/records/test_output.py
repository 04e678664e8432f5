import errno
import os
from pathlib import Path

import pytest

from gptj_batch.errors import ConfigError, OutputError
from gptj_batch.records.output import OutputFolder, not_written

from .crash import crashes


def write(folder: OutputFolder, final: Path, content: bytes) -> None:
    with folder.whole_file(final) as staged:
        staged.write_bytes(content)


@pytest.mark.parametrize("path", ["hf://datasets/out", "hdfs://host/out", "file:///tmp/out"])
def test_an_output_that_is_not_a_path_of_this_machine_is_refused(path):
    with pytest.raises(ConfigError, match="outputs are local, on a mounted file system, or in a bucket"):
        OutputFolder.at(path)


def test_a_relative_path_is_made_absolute_since_workers_run_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert OutputFolder.at("out").root == tmp_path / "out"


def test_everything_but_parts_is_hidden_from_readers(tmp_path):
    folder = OutputFolder.at(tmp_path)
    hidden = [folder.success, folder.plan, folder.staging, folder.unit(7)]
    assert all(path.relative_to(tmp_path).parts[0].startswith("_") for path in hidden)
    assert folder.unit(7).name == "unit-00000007.parquet"


@pytest.mark.parametrize("num_parts", [1, 9, 100_000, 100_001, 2_000_000])
def test_the_order_of_part_names_is_the_order_of_parts(tmp_path, num_parts):
    folder = OutputFolder.at(tmp_path)
    names = [folder.part(i, num_parts).name for i in sorted({0, min(1, num_parts - 1), num_parts // 2, num_parts - 1})]
    assert names == sorted(names) and names[0].startswith("part-00000")


def test_units_and_parts_are_told_from_other_names(tmp_path):
    folder = OutputFolder.at(tmp_path)
    folder.units.mkdir(parents=True)
    for name in ("unit-00000003.parquet", "unit-00000001.parquet", "unit-x.parquet", "unit-00000001.parquet.tmp"):
        (folder.units / name).touch()
    for name in ("part-00001.parquet", "part-00000.parquet", "part-old.parquet", "notes.txt"):
        (tmp_path / name).touch()
    assert folder.unit_indices() == [1, 3]
    assert [part.name for part in folder.parts()] == ["part-00000.parquet", "part-00001.parquet"]


def test_parts_of_every_format_and_in_partitions_are_found_and_others_are_not(tmp_path):
    folder = OutputFolder.at(tmp_path)
    ours = ["part-00000.jsonl", "part-00001.jsonl.zst", "a=1/part-00000.arrow", "a=1/b=x/part-00007.parquet"]
    theirs = ["part-00000.csv", "a=1/notes.txt", "plain/part-00000.parquet", "_a=1/part-00000.parquet"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c=1").symlink_to(tmp_path / "a=1")
    assert [str(part.relative_to(tmp_path)) for part in folder.parts()] == ours
    (tmp_path / "a=2").mkdir()
    folder.remove_empty_partitions()
    assert not (tmp_path / "a=2").exists() and len(folder.parts()) == len(ours)


def test_a_folder_that_is_not_there_has_no_units_and_no_parts(tmp_path):
    folder = OutputFolder.at(tmp_path / "none")
    assert folder.unit_indices() == [] and folder.parts() == []


def test_a_file_appears_with_what_was_written_and_nothing_stays_staged(tmp_path):
    folder = OutputFolder.at(tmp_path / "out")
    write(folder, folder.plan, b"one")
    write(folder, folder.plan, b"two")
    assert folder.plan.read_bytes() == b"two" and list(folder.staging.iterdir()) == []


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_staged(tmp_path):
    folder = OutputFolder.at(tmp_path)
    write(folder, folder.plan, b"old")
    with pytest.raises(RuntimeError), folder.whole_file(folder.plan) as staged:
        staged.write_bytes(b"new")
        raise RuntimeError
    assert folder.plan.read_bytes() == b"old" and list(folder.staging.iterdir()) == []


def test_a_staged_file_that_is_another_name_of_the_final_one_does_not_stay(tmp_path):
    folder = OutputFolder.at(tmp_path)
    write(folder, folder.plan, b"same")
    with folder.whole_file(folder.plan) as staged:
        os.link(folder.plan, staged)
    assert folder.plan.read_bytes() == b"same" and list(folder.staging.iterdir()) == []


def test_a_process_killed_at_any_step_leaves_the_file_whole_or_absent(tmp_path):
    def success(number: int) -> Path:
        return OutputFolder.at(tmp_path / str(number)).success

    for number in crashes(lambda number: write(OutputFolder.at(tmp_path / str(number)), success(number), b"whole")):
        assert not success(number).exists() or success(number).read_bytes() == b"whole"


def test_a_name_that_is_taken_by_a_file_says_where_and_what_to_do(tmp_path):
    (tmp_path / "_gptj_batch").write_text("in the way")
    folder = OutputFolder.at(tmp_path)
    with pytest.raises(OutputError, match=r"output\.path: .*plan\.json cannot be written: .*then run the same command"):
        write(folder, folder.plan, b"x")


@pytest.mark.parametrize(
    ("number", "step"),
    [(errno.ENOSPC, r"Make room \(\d+\.\d MiB are free there\)"), (errno.EROFS, "Allow writing there"), (5, "Remove")],
)
def test_the_next_step_follows_from_the_cause(tmp_path, number, step):
    error = not_written(tmp_path / "a" / "b", OSError(number, os.strerror(number)))
    with pytest.raises(OutputError, match=f"{os.strerror(number)}.*{step}.*finished units are kept"):
        raise error


@pytest.mark.parametrize(
    "path", ["s3://bucket", "s3://bucket/out?region=x", "s3://key:hidden@bucket/out", "gs://bucket/"]
)
def test_a_bucket_is_named_with_a_prefix_and_neither_options_nor_secrets(path):
    with pytest.raises(ConfigError, match="a place in a bucket is") as refused:
        OutputFolder.at(path)
    assert "hidden" not in str(refused.value)


def test_a_place_in_a_bucket_is_written_as_it_was_given():
    folder = OutputFolder.at("s3://bucket/some/out")
    assert str(folder.unit(7)) == "s3://bucket/some/out/_gptj_batch/units/unit-00000007.parquet"
    assert OutputFolder.at(folder.root.as_posix()) == folder
    assert OutputFolder.at(folder.root) == folder
