import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.records.batches import (
    arrow_batches,
    count_arrow_rows,
    damaged_chunk,
    open_parquet,
    open_source,
    overlapping_groups,
    parquet_batches,
)

from .tables import bad_utf8, numbered, write_arrow, write_parquet


def test_only_the_row_groups_that_overlap_are_touched(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", numbered(0, 100), row_group_size=10)
    metadata = pq.read_metadata(path)
    assert overlapping_groups(metadata, 0, 10) == ([0], 0)
    assert overlapping_groups(metadata, 15, 31) == ([1, 2, 3], 10)
    assert overlapping_groups(metadata, 99, 100) == ([9], 90)


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (0, 1), (9, 11), (33, 77), (99, 100)])
@pytest.mark.parametrize("row_group_size", [1, 10, 1000])
def test_rows_of_a_parquet_file_are_exactly_those_asked_for(tmp_path, start, stop, row_group_size):
    path = write_parquet(tmp_path / "a.parquet", numbered(0, 100), row_group_size=row_group_size)
    with open_source(str(path), "parquet") as source, open_parquet(source) as file:
        batches = list(parquet_batches(file, ["id"], start, stop))
    assert pa.Table.from_batches(batches).column("id").to_pylist() == list(range(start, stop))


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (0, 1), (6, 8), (33, 77), (99, 100)])
@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_an_arrow_file_are_exactly_those_asked_for(tmp_path, start, stop, stream):
    path = write_arrow(tmp_path / "a.arrow", numbered(0, 100), stream=stream)
    with open_source(str(path), "arrow") as source:
        batches = list(arrow_batches(source, ["text", "id"], start, stop))
        assert count_arrow_rows(source) == 100
    table = pa.Table.from_batches(batches)
    assert table.select(["id", "text"]).to_pylist() == numbered(start, stop).to_pylist()


def test_invalid_utf8_passes_for_it_is_a_rows_error(tmp_path):
    path = write_arrow(tmp_path / "a.arrow", pa.table({"text": bad_utf8(b"ok", b"\xff")}))
    with open_source(str(path), "arrow") as source:
        (batch,) = arrow_batches(source, ["text"], 0, 2)
    assert batch.column("text").cast(pa.binary()).to_pylist() == [b"ok", b"\xff"]


def test_offsets_that_lead_outside_of_an_arrow_batch_are_caught(tmp_path):
    path = tmp_path / "a.arrow"
    honest = pa.table({"text": ["ab", "cd"]})
    write_arrow(path, honest)
    content = path.read_bytes()
    assert content.count(b"\0\0\0\0\x02\0\0\0\x04\0\0\0") == 1
    path.write_bytes(content.replace(b"\0\0\0\0\x02\0\0\0\x04\0\0\0", b"\0\0\0\0\x02\0\0\0\xff\xff\xff\x0f"))
    with open_source(str(path), "arrow") as source, pytest.raises(pa.ArrowInvalid):
        list(arrow_batches(source, ["text"], 0, 2))


def test_damage_is_found_by_row_group_and_column(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", numbered(0, 100), row_group_size=50, compression="none", write_page_checksum=True
    )
    content = bytearray(path.read_bytes())
    content[content.index(b"row 77")] ^= 0xFF
    path.write_bytes(content)
    with open_source(str(path), "parquet") as source, open_parquet(source) as file:
        assert damaged_chunk(file, ["id", "text"], 0, 50) == ""
        assert damaged_chunk(file, ["id", "text"], 0, 100) == ' in row group 1, column "text"'
