import gzip

import pyarrow as pa
import pytest

from gptj_batch.records.footers import BadFile, InputFile, inspect_files
from gptj_batch.records.locate import find_files

from .tables import every_type, numbered, write_arrow, write_parquet


def inspected(path, file_format="parquet"):
    (answer,) = inspect_files([(file, file_format) for file in find_files(str(path))])
    return answer


def test_a_parquet_footer_gives_rows_bytes_and_columns(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", every_type())
    file = inspected(path)
    assert isinstance(file, InputFile)
    assert (file.num_rows, file.size_bytes, file.mtime_ns) == (3, path.stat().st_size, path.stat().st_mtime_ns)
    assert file.schema.names == every_type().column_names and file.schema.metadata == {b"who": b"tests"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_arrow_file_and_an_arrow_stream_are_told_apart(tmp_path, stream):
    file = inspected(write_arrow(tmp_path / "a.arrow", numbered(0, 50), stream=stream), "arrow")
    assert isinstance(file, InputFile) and file.num_rows == 50 and file.schema == numbered(0, 1).schema


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "the file is empty"),
        (b"PAR1", "not a whole Parquet file"),
        (b"id,text\n1,a\n2,b\n", "magic bytes not found"),
        (b"PAR1" + b"\0" * 20 + b"\xff\xff\xff\x00PAR1", "not a whole Parquet file"),
        (b"PAR1" + b"\x15\x01" * 20 + (30).to_bytes(4, "little") + b"PAR1", "not a whole Parquet file"),
    ],
)
def test_a_file_that_is_not_parquet_is_bad_and_says_why(tmp_path, content, rule):
    (tmp_path / "a.parquet").write_bytes(content)
    bad = inspected(tmp_path / "a.parquet")
    assert isinstance(bad, BadFile) and rule in bad.rule
    assert str(bad).startswith(f"{tmp_path}/a.parquet ({len(content)} bytes): ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_truncated_arrow_file_is_bad(tmp_path, stream):
    path = write_arrow(tmp_path / "a.arrow", numbered(0, 500), stream=stream)
    path.write_bytes(path.read_bytes()[:-700])
    assert isinstance(inspected(path, "arrow"), BadFile)


def test_every_cut_of_a_parquet_file_is_bad(tmp_path):
    whole = write_parquet(tmp_path / "whole", numbered(0, 20)).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "a.parquet").write_bytes(whole[:length])
        assert isinstance(inspected(tmp_path / "a.parquet"), BadFile), length


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    bad = inspected(write_parquet(tmp_path / "a.parquet", table))
    assert isinstance(bad, BadFile) and 'more than one column called "a"' in bad.rule


@pytest.mark.parametrize("name", ["ray.data.arrow_pickled_object", "arrow.py_extension_type"])
@pytest.mark.parametrize("nested", [False, True])
def test_pickles_in_a_column_are_refused(tmp_path, name, nested):
    field = pa.field("x", pa.binary(), metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": ""})
    if nested:
        field = pa.field("s", pa.struct([field]))
    table = pa.schema([pa.field("id", pa.int64()), field]).empty_table()
    bad = inspected(write_parquet(tmp_path / "a.parquet", table))
    assert isinstance(bad, BadFile) and f'"x" has the type {name}, whose values are pickles' in bad.rule


def test_an_extension_that_nobody_knows_is_kept_with_its_name(tmp_path):
    field = pa.field("x", pa.int32(), metadata={"ARROW:extension:name": "acme.colour", "ARROW:extension:metadata": "v"})
    file = inspected(write_parquet(tmp_path / "a.parquet", pa.schema([field]).empty_table()))
    assert isinstance(file, InputFile) and file.schema.field("x").metadata[b"ARROW:extension:name"] == b"acme.colour"


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b'{"id": 1}\n{"id": \n', "line 2: it is not JSON"),
        ("a.csv", b"id,text\n1\n", "line 2: the row has 1 field, and the header 2"),
        (
            "a.csv.gz",
            gzip.compress(b"id,text\n1,a\n" * 1000, mtime=0)[:-9],
            "not a whole CSV file: Truncated compressed stream",
        ),
        ("a.jsonl.zst", b"plain", "not a whole JSON lines file: "),
    ],
)
def test_a_file_of_text_that_cannot_be_read_is_bad_and_says_why(tmp_path, name, content, rule):
    (tmp_path / name).write_bytes(content)
    bad = inspected(tmp_path / name, "csv" if "csv" in name else "jsonl")
    assert isinstance(bad, BadFile) and rule in bad.rule


def test_a_column_that_the_folders_name_has_too_is_refused(tmp_path):
    write_parquet(tmp_path / "id=1" / "a.parquet", numbered(0, 2))
    bad = inspected(tmp_path)
    assert isinstance(bad, BadFile) and 'it has a column "id", and so has its folder' in bad.rule
