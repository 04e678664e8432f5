import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.publish import is_complete, publish, published_form, published_groups, success_path
from gptj_batch.records.write import write_unit

from .crash import crashes
from .tables import every_type, numbered, same_columns

NUM_UNITS, UNIT_ROWS = 7, 10
ALL_ROWS = NUM_UNITS * UNIT_ROWS
# Sizes at which two units make a part, one does, and all of them do.
TWO, ONE, ALL = (PartForm(target_file_bytes=size) for size in (550, 1, 10**9))


def write_units(output: Path, num_units: int = NUM_UNITS) -> None:
    for index in range(num_units):
        start = index * UNIT_ROWS
        write_unit(numbered(start, start + UNIT_ROWS), output, index, metadata=b'{"model": "demo"}')


def parts(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir() if path.name.startswith("part-"))


def ids(output: Path) -> list[int]:
    return [row for name in parts(output) for row in pq.read_table(output / name).column("id").to_pylist()]


def files(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_consecutive_units_become_parts_of_about_the_target_size(tmp_path):
    write_units(tmp_path)
    names = publish(tmp_path, NUM_UNITS, TWO, num_rows=ALL_ROWS)
    assert names == parts(tmp_path) == [f"part-{index:05d}.parquet" for index in range(4)]
    assert ids(tmp_path) == list(range(ALL_ROWS))


def test_success_stands_when_all_is_done_and_only_the_private_folder_is_left(tmp_path):
    write_units(tmp_path)
    assert not is_complete(tmp_path)
    publish(tmp_path, NUM_UNITS, TWO)
    assert is_complete(tmp_path) and success_path(tmp_path) == tmp_path / "_SUCCESS"
    assert json.loads((tmp_path / "_SUCCESS").read_text())["rows"] == ALL_ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_SUCCESS", "_gptj_batch", *parts(tmp_path)]
    assert list((tmp_path / "_gptj_batch").iterdir()) == []


def test_common_readers_read_the_folder_as_one_table_also_before_it_is_published(tmp_path):
    write_units(tmp_path)
    assert ds.dataset(tmp_path, format="parquet").count_rows() == 0
    publish(tmp_path, NUM_UNITS, TWO)
    assert ds.dataset(tmp_path, format="parquet").count_rows() == ALL_ROWS
    assert pq.read_table(tmp_path).num_rows == len(pd.read_parquet(tmp_path)) == ALL_ROWS


def test_a_part_has_the_lineage_and_large_row_groups_with_checksums(tmp_path):
    write_units(tmp_path)
    publish(tmp_path, NUM_UNITS, PartForm(target_file_bytes=10**9, compression="none"))
    path = tmp_path / "part-00000.parquet"
    metadata = pq.read_metadata(path)
    assert metadata.metadata[b"gptj_batch"] == b'{"model": "demo"}' and metadata.num_row_groups == 1
    content = bytearray(path.read_bytes())
    content[content.index(b"row 44")] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize("form", [ONE, ALL], ids=["alone", "merged"])
def test_every_type_survives_alone_and_merged(tmp_path, form):
    for index in range(2):
        write_unit(every_type(), tmp_path, index)
    publish(tmp_path, 2, form)
    back = pa.concat_tables([pq.read_table(tmp_path / name) for name in parts(tmp_path)])
    assert len(parts(tmp_path)) == (2 if form is ONE else 1)
    assert same_columns(back.schema, every_type().schema)
    assert back.equals(pa.concat_tables([every_type(), every_type()]))


def test_dictionaries_too_many_for_one_index_are_merged_so_that_they_can_be_read(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    texts = [f"{unit}-{i}" for unit in range(5) for i in range(60)]
    for unit in range(5):
        write_unit(pa.table({"c": pa.array(texts[unit * 60 :][:60]).cast(kind)}), tmp_path, unit)
    publish(tmp_path, 5, ALL)
    column = pq.read_table(tmp_path / "part-00000.parquet").column("c")
    assert column.type == kind and column.to_pylist() == texts


def test_an_output_without_rows_has_one_part_with_the_columns(tmp_path):
    write_unit(every_type().slice(0, 0), tmp_path, 0)
    assert publish(tmp_path, 1, ALL, num_rows=0) == ["part-00000.parquet"]
    assert same_columns(pq.read_schema(tmp_path / "part-00000.parquet"), every_type().schema)
    assert pq.read_table(tmp_path).num_rows == 0


def test_publishing_again_changes_nothing(tmp_path):
    write_units(tmp_path)
    names = publish(tmp_path, NUM_UNITS, TWO)
    before = files(tmp_path)
    assert publish(tmp_path, NUM_UNITS, TWO) == names
    assert files(tmp_path) == before


def test_a_publication_killed_at_any_step_is_finished_by_the_next(tmp_path):
    write_units(tmp_path / "units")

    def publish_copy(number: int) -> None:
        publish(tmp_path / str(number), NUM_UNITS, TWO, num_rows=ALL_ROWS)

    shutil.copytree(tmp_path / "units", tmp_path / "undisturbed")
    publish(tmp_path / "undisturbed", NUM_UNITS, TWO, num_rows=ALL_ROWS)
    for number in range(1, 200):
        shutil.copytree(tmp_path / "units", tmp_path / str(number))
    for number in crashes(publish_copy):
        output = tmp_path / str(number)
        for name in parts(output):  # what a reader sees in between is whole
            assert pq.read_table(output / name).num_rows in (UNIT_ROWS, 2 * UNIT_ROWS)
        if is_complete(output):
            assert ids(output) == list(range(ALL_ROWS))
        else:
            assert OutputFolder.at(output).unit_indices() == list(range(NUM_UNITS)), "nothing is taken away before"
        publish_copy(number)
        assert files(output) == files(tmp_path / "undisturbed")


def test_parts_of_a_publication_that_was_cut_off_with_other_units_are_replaced(tmp_path):
    write_units(tmp_path)
    shutil.copytree(tmp_path, tmp_path.with_name("before"))
    publish(tmp_path, NUM_UNITS, ONE)  # seven parts of one unit
    for name in ("units", "staging"):
        shutil.copytree(tmp_path.with_name("before") / "_gptj_batch" / name, tmp_path / "_gptj_batch" / name)
    (tmp_path / "_SUCCESS").unlink()
    assert len(publish(tmp_path, NUM_UNITS, TWO, num_rows=ALL_ROWS)) == len(parts(tmp_path)) == 4
    assert ids(tmp_path) == list(range(ALL_ROWS))


def test_a_unit_done_again_after_a_cut_off_publication_is_the_one_that_counts(tmp_path):
    write_units(tmp_path)
    last = OutputFolder.at(tmp_path).unit(6)
    last.write_bytes(last.read_bytes()[:-4] + b"gone")
    with pytest.raises(OutputError, match=r"unit-00000006\.parquet cannot be read.*Delete this file and run the job"):
        publish(tmp_path, NUM_UNITS, TWO)
    assert len(parts(tmp_path)) == 3 and not is_complete(tmp_path)
    write_unit(numbered(60, 70), tmp_path, 6)
    write_unit(numbered(100, 110), tmp_path, 0)
    publish(tmp_path, NUM_UNITS, TWO, num_rows=ALL_ROWS)
    assert ids(tmp_path) == [*range(100, 110), *range(10, ALL_ROWS)]


def test_files_of_others_are_left_alone(tmp_path):
    write_units(tmp_path)
    for name in ("notes.txt", "part-old.parquet"):
        (tmp_path / name).write_text("mine")
    publish(tmp_path, NUM_UNITS, TWO)
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "part-old.parquet").read_text() == "mine"


def test_missing_units_stop_the_publication_before_its_first_part(tmp_path):
    write_units(tmp_path)
    OutputFolder.at(tmp_path).unit(3).unlink()
    with pytest.raises(OutputError, match=r"1 of 7 units are not there yet, the first is .*unit-00000003\.parquet"):
        publish(tmp_path, NUM_UNITS, TWO)
    assert parts(tmp_path) == []


def test_another_number_of_rows_than_the_input_has_is_never_a_success(tmp_path):
    write_units(tmp_path)
    with pytest.raises(OutputError, match="has 70 rows, and the input 71"):
        publish(tmp_path, NUM_UNITS, TWO, num_rows=71)
    assert not is_complete(tmp_path) and len(OutputFolder.at(tmp_path).unit_indices()) == NUM_UNITS


def test_a_unit_with_other_columns_is_never_merged(tmp_path):
    write_units(tmp_path)
    write_unit(numbered(10, 20).rename_columns(["id", "txt"]), tmp_path, 1)
    with pytest.raises(OutputError, match=r"unit-00000001\.parquet has other columns"):
        publish(tmp_path, NUM_UNITS, TWO)


def test_success_says_what_the_parts_are_like(tmp_path):
    write_units(tmp_path)
    assert published_form(tmp_path) is None
    publish(tmp_path, NUM_UNITS, PartForm(target_file_bytes=1, format="jsonl", compression="gzip"))
    assert published_form(tmp_path) == {"format": "jsonl", "compression": "gzip", "partition_by": []}


@pytest.mark.parametrize(
    "form", [TWO, PartForm(target_file_bytes=1, partition_by=("id",))], ids=["flat", "partitioned"]
)
def test_a_form_that_another_publication_began_with_leaves_nothing(tmp_path, form):
    write_units(tmp_path)
    with pytest.raises(OutputError, match="has 70 rows"):
        publish(tmp_path, NUM_UNITS, form, num_rows=71)
    assert OutputFolder.at(tmp_path).parts()
    publish(tmp_path, NUM_UNITS, PartForm(target_file_bytes=10**9, format="arrow", compression="lz4"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_SUCCESS", "_gptj_batch", "part-00000.arrow"]


def test_no_part_has_rows_of_two_groups(tmp_path):
    write_units(tmp_path)
    names = publish(tmp_path, NUM_UNITS, ALL, num_rows=ALL_ROWS, groups=[3, 0, 4])
    assert published_groups(tmp_path) == [["part-00000.parquet"], [], ["part-00001.parquet"]]
    assert [pq.read_metadata(tmp_path / name).num_rows for name in names] == [30, 40]
    assert ids(tmp_path) == list(range(ALL_ROWS))


def test_groups_are_kept_apart_in_partitions_too(tmp_path):
    for index in range(4):
        table = numbered(index * UNIT_ROWS, (index + 1) * UNIT_ROWS).append_column("of", pa.array(["x", "y"] * 5))
        write_unit(table, tmp_path, index)
    publish(tmp_path, 4, PartForm(target_file_bytes=10**9, partition_by=("of",)), groups=[1, 3])
    groups = published_groups(tmp_path)
    rows = [sorted(n for name in group for n in pq.read_table(tmp_path / name)["id"].to_pylist()) for group in groups]
    assert rows == [list(range(10)), list(range(10, 40))]


def test_groups_without_any_row_have_one_part_that_is_nobodys(tmp_path):
    write_unit(numbered(0, 0), tmp_path, 0)
    assert publish(tmp_path, 1, ALL, groups=[0, 0]) == ["part-00000.parquet"]
    assert published_groups(tmp_path / "nowhere") is None
