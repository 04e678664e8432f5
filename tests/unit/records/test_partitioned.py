import shutil

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import gptj_batch.records.partitioned as partitioned
from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.progress import clean
from gptj_batch.records.publish import publish
from gptj_batch.records.write import write_unit

from .crash import crashes
from .tables import every_type, numbered

BY_LABEL = PartForm(target_file_bytes=10**9, partition_by=("label",))


def write_units(output, num_units=6, unit_rows=50, num_labels=5):
    labels = np.random.default_rng(0).integers(0, num_labels, num_units * unit_rows)
    for index in range(num_units):
        start = index * unit_rows
        table = numbered(start, start + unit_rows)
        column = pa.array([f"label {label}" for label in labels[start : start + unit_rows]])
        table = table.add_column(1, "label", column).replace_schema_metadata({"who": "tests"})
        write_unit(table, output, index, metadata=b"{}")
    return labels.tolist()


def read(output):
    return ds.dataset(output, partitioning="hive").to_table().sort_by("id")


def test_rows_go_to_the_folder_of_their_value_and_the_column_leaves_the_file(tmp_path):
    labels = write_units(tmp_path)
    names = publish(tmp_path, 6, BY_LABEL, 300)
    assert names == [f"label=label%20{i}/part-00000.parquet" for i in range(5)]
    part = pq.ParquetFile(tmp_path / names[0])
    assert part.schema_arrow.names == ["id", "text"] and part.metadata.num_row_groups == 1
    assert part.schema_arrow.metadata == {b"who": b"tests", b"gptj_batch": b"{}"}
    ids = part.read().column("id").to_pylist()
    assert ids == sorted(ids)
    table = read(tmp_path)
    assert table.column("id").to_pylist() == list(range(300))
    assert table.column("label").to_pylist() == [f"label {label}" for label in labels]


@pytest.mark.parametrize("max_open", [1, 2, 256])
def test_few_open_files_give_the_same_output(tmp_path, monkeypatch, max_open):
    write_units(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    publish(tmp_path / "a", 6, BY_LABEL)
    monkeypatch.setattr(partitioned, "_MAX_OPEN", max_open)
    publish(tmp_path / "b", 6, BY_LABEL)
    for part in OutputFolder.at(tmp_path / "a").parts():
        assert (tmp_path / "b" / part.relative_to(tmp_path / "a")).read_bytes() == part.read_bytes()
    assert len(OutputFolder.at(tmp_path / "b").parts()) == 5


@pytest.mark.parametrize("unit_rows", [25, 500])
def test_the_number_of_files_does_not_depend_on_the_size_of_units(tmp_path, unit_rows):
    for index in range(5000 // unit_rows):
        noise = np.random.default_rng(index).bytes(unit_rows * 200)
        texts = pa.FixedSizeBinaryArray.from_buffers(pa.binary(200), unit_rows, [None, pa.py_buffer(noise)])
        write_unit(pa.table({"label": ["a", "b", "b", "b", "b"] * (unit_rows // 5), "x": texts}), tmp_path, index)
    publish(tmp_path, 5000 // unit_rows, PartForm(target_file_bytes=200_000, partition_by=("label",)))
    sizes = [part.stat().st_size for part in OutputFolder.at(tmp_path).parts()]
    assert len(sizes) in (5, 6, 7) and max(sizes) < 280_000


def test_sorted_input_has_few_files_open_at_once(tmp_path, monkeypatch):
    for index in range(30):
        write_unit(pa.table({"day": [index, index + 1], "x": [1, 2]}), tmp_path, index)
    staged = []
    monkeypatch.setattr(partitioned.PartSeries, "finish", _counting(partitioned.PartSeries.finish, staged, tmp_path))
    publish(tmp_path, 30, PartForm(target_file_bytes=1, partition_by=("day",)))
    assert len(staged) == 31 and max(staged) <= 2


def _counting(finish, counts, output):
    def counted(series):
        counts.append(len(list(OutputFolder.at(output).staging.iterdir())))
        return finish(series)

    return counted


def test_too_many_values_stop_before_anything_is_written_and_keep_the_units(tmp_path, monkeypatch):
    monkeypatch.setattr(partitioned, "MAX_PARTITIONS", 100)
    write_units(tmp_path)
    form = PartForm(target_file_bytes=10**9, partition_by=("id",))
    with pytest.raises(OutputError, match=r'partition_by: "id" has more than 100 values.*finished units are kept'):
        publish(tmp_path, 6, form)
    assert OutputFolder.at(tmp_path).parts() == [] and len(OutputFolder.at(tmp_path).unit_indices()) == 6
    assert len(publish(tmp_path, 6, BY_LABEL)) == 5


@pytest.mark.parametrize("kind", ["arrow", "jsonl"])
def test_other_formats_are_partitioned_alike(tmp_path, kind):
    write_units(tmp_path)
    form = PartForm(target_file_bytes=10**9, format=kind, compression="none", partition_by=("label",))
    publish(tmp_path, 6, form)
    reader = "ipc" if kind == "arrow" else "json"
    dataset = ds.dataset(tmp_path, format=reader, partitioning="hive")
    table = dataset.to_table(use_threads=False).sort_by("id")  # pyarrow may wait for ever on several JSON files
    assert table.column("id").to_pylist() == list(range(300)) and set(table.column_names) == {"id", "text", "label"}


def test_every_type_survives(tmp_path):
    for index in range(3):
        write_unit(every_type().append_column("c", pa.array([1, 2, 1])), tmp_path, index)
    publish(tmp_path, 3, PartForm(target_file_bytes=10**9, partition_by=("c",)))
    back = pq.read_table(tmp_path / "c=1" / "part-00000.parquet", partitioning=None)
    expected = [every_type().slice(row, 1) for row in (0, 2)] * 3
    assert back.equals(pa.concat_tables(expected)) and back.schema.metadata == every_type().schema.metadata


def test_without_rows_there_is_one_part_with_all_columns(tmp_path):
    write_unit(pa.table({"label": pa.array([], pa.string()), "x": pa.array([], pa.int8())}), tmp_path, 0)
    assert publish(tmp_path, 1, BY_LABEL, 0) == ["part-00000.parquet"]
    assert pq.read_schema(tmp_path / "part-00000.parquet").names == ["label", "x"]


def test_a_publication_killed_at_any_step_is_finished_by_the_next(tmp_path):
    write_units(tmp_path / "units", num_units=2, unit_rows=5, num_labels=2)

    def publish_copy(number):
        publish(tmp_path / str(number), 2, BY_LABEL, num_rows=10)

    for number in range(1, 60):
        shutil.copytree(tmp_path / "units", tmp_path / str(number))
    for number in crashes(publish_copy):
        for part in OutputFolder.at(tmp_path / str(number)).parts():
            assert pq.read_metadata(part).num_rows
        publish_copy(number)
        assert read(tmp_path / str(number)).column("id").to_pylist() == list(range(10))


def test_cleaning_removes_parts_in_partitions_and_nothing_of_others(tmp_path):
    write_units(tmp_path)
    publish(tmp_path, 6, BY_LABEL)
    (tmp_path / "label=label%200" / "notes.txt").write_text("mine")
    clean(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "label=label%200",
        "label=label%200/notes.txt",
    ]
