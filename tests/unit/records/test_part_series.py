import gzip
import itertools
import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import COMPRESSIONS, PartForm
from gptj_batch.records.part_reader import count_rows, read_column
from gptj_batch.records.part_series import PartSeries
from gptj_batch.records.part_writer import check_part

from .tables import every_type, numbered, same_columns

EVERY_FORM = [
    PartForm(target_file_bytes=2**20, format=kind, compression=compression)
    for kind, compressions in COMPRESSIONS.items()
    for compression in compressions
]


def write(output: Path, form: PartForm, *tables: pa.Table) -> dict[Path, int]:
    folder = OutputFolder.at(output)
    series = PartSeries(folder, partial(folder.part, max_parts=10**5, ending=form.ending), tables[0].schema, form)
    with ExitStack() as unfinished:
        unfinished.push(series.leave_nothing)
        for table in tables:
            series.add(table)
        return series.finish()


def noise(num_rows: int, seed: int = 0) -> pa.Table:
    """Rows that nothing makes smaller, of about 100 bytes."""
    letters = np.random.default_rng(seed).integers(97, 123, (num_rows, 100), dtype=np.uint8)
    return pa.table({"text": pa.array([bytes(row).decode() for row in letters])})


@pytest.mark.parametrize("form", EVERY_FORM, ids=lambda form: f"{form.format}-{form.compression}")
@pytest.mark.parametrize("unit_rows", [50, 500, 5000])
def test_files_are_about_as_large_as_asked_for_whatever_the_size_of_the_tables(tmp_path, form, unit_rows):
    tables = [noise(unit_rows, seed) for seed in range(50_000 // unit_rows)]
    written = write(tmp_path, form, *tables)
    sizes = [path.stat().st_size for path in written]
    assert len(sizes) >= 3 and sum(written.values()) == 50_000
    assert all(0.6 * 2**20 < size < 1.4 * 2**20 for size in sizes[:-1]), sizes
    assert list(written) == OutputFolder.at(tmp_path).parts() and count_rows(next(iter(written)), form.ending)


@pytest.mark.parametrize("form", EVERY_FORM, ids=lambda form: f"{form.format}-{form.compression}")
def test_a_column_is_read_back_from_every_format(tmp_path, form):
    written = write(tmp_path, form, *(numbered(start, start + 100) for start in range(0, 1000, 100)))
    ids = [read_column(OutputFolder.at(tmp_path), part, "id") for part in written]
    assert [value for column in ids for value in column.to_pylist()] == list(range(1000))
    assert read_column(OutputFolder.at(tmp_path), next(iter(written)), "text")[7].as_py() == "row 7"


def test_arrow_files_keep_every_type_and_metadata(tmp_path):
    form = PartForm(target_file_bytes=10**9, format="arrow")
    (part,) = write(tmp_path, form, every_type(), every_type())
    table = pa.ipc.open_file(part).read_all()
    assert same_columns(table.schema, every_type().schema)
    assert table.equals(pa.concat_tables([every_type()] * 2))


def test_arrow_dictionaries_grow_from_table_to_table(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    texts = [[f"{start}-{i}" for i in range(40)] for start in range(3)]
    tables = [pa.table({"c": pa.array(values).cast(kind), "n": range(40)}) for values in texts]
    (part,) = write(tmp_path, PartForm(target_file_bytes=100_000, format="arrow", row_group_rows=30), *tables)
    column = pa.ipc.open_file(part).read_all().column("c")
    assert column.type == kind and column.num_chunks == 4
    assert column.to_pylist() == list(itertools.chain(*texts))


def test_dictionaries_that_do_not_fit_one_arrow_file_begin_another(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    texts = [[f"{start}-{i}" for i in range(100)] for start in range(3)]
    written = write(
        tmp_path,
        PartForm(target_file_bytes=10**9, format="arrow"),
        *(pa.table({"c": pa.array(values).cast(kind)}) for values in texts),
    )
    assert [pa.ipc.open_file(part).read_all().column("c").to_pylist() for part in written] == texts


@pytest.mark.parametrize("unit_rows", [1, 7, 250, 1000])
def test_row_groups_have_the_rows_asked_for(tmp_path, unit_rows):
    tables = [numbered(start, start + unit_rows) for start in range(0, 1000, unit_rows)]
    form = PartForm(target_file_bytes=10**9, row_group_rows=300)
    (part,) = write(tmp_path, form, *tables)
    metadata = pq.read_metadata(part)
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [300, 300, 300, sum(len(table) for table in tables) - 900]
    assert pq.read_table(part).column("id").to_pylist() == list(range(sum(groups)))


def test_many_tables_of_few_rows_do_not_fill_the_memory_by_their_number(tmp_path):
    (part,) = write(tmp_path, PartForm(target_file_bytes=2**30), *[pa.table({"id": [row]}) for row in range(10_000)])
    groups = pq.ParquetFile(part).metadata
    assert groups.num_rows == 10_000 and groups.num_row_groups > 1


def test_json_lines_are_plain_or_compressed(tmp_path):
    form = PartForm(target_file_bytes=10**9, format="jsonl", compression="none")
    (part,) = write(tmp_path / "plain", form, numbered(0, 2))
    assert part.name == "part-00000.jsonl"
    assert part.read_text("utf-8") == '{"id":0,"text":"row 0"}\n{"id":1,"text":"row 1"}\n'
    form = PartForm(target_file_bytes=10**9, format="jsonl", compression="gzip")
    (part,) = write(tmp_path / "gzip", form, numbered(0, 2))
    assert part.name == "part-00000.jsonl.gz"
    assert json.loads(gzip.decompress(part.read_bytes()).split(b"\n")[1]) == {"id": 1, "text": "row 1"}


@pytest.mark.parametrize("form", EVERY_FORM, ids=lambda form: f"{form.format}-{form.compression}")
def test_without_rows_there_is_one_part(tmp_path, form):
    written = write(tmp_path, form, numbered(0, 0))
    assert list(written.values()) == [0] and len(OutputFolder.at(tmp_path).parts()) == 1


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl"])
def test_a_failure_leaves_the_whole_parts_and_nothing_staged(tmp_path, kind):
    form = PartForm(target_file_bytes=2**16, format=kind, compression="none")
    other = pa.table({"other": [1, 2]}) if kind != "jsonl" else pa.table({"c": pa.UnionArray.from_sparse(*UNION)})
    with pytest.raises((OutputError, ValueError), match=r"part-0000\d\..* cannot be written|does not match"):
        write(tmp_path, form, *(noise(400, seed) for seed in range(5)), other)
    folder = OutputFolder.at(tmp_path)
    assert list(folder.staging.iterdir()) == [] and len(folder.parts()) >= 2
    for part in folder.parts():
        assert count_rows(part, form.ending) > 0


UNION = (pa.array([0, 0], pa.int8()), [pa.array([1, 2])])


@pytest.mark.parametrize("form", EVERY_FORM, ids=lambda form: f"{form.format}-{form.compression}")
def test_a_part_with_another_number_of_rows_stops_the_run(tmp_path, form):
    (part,) = write(tmp_path, form, numbered(0, 9))
    check_part(part, part, form, 9)
    with pytest.raises(OutputError, match="10 rows were written and 9 are in it"):
        check_part(part, part, form, 10)
