import pyarrow as pa
import pytest

from gptj_batch.errors import InputError
from gptj_batch.records.footers import BadFile, InputFile, inspect_files
from gptj_batch.records.locate import find_files
from gptj_batch.records.merge import merge_schemas

from .tables import every_type, numbered, write_arrow, write_parquet


def inspected(path, file_format="parquet"):
    (answer,) = inspect_files([(file, file_format) for file in find_files(str(path))])
    return answer


def with_schema(name: str, **types: pa.DataType) -> InputFile:
    return InputFile(f"/data/{name}.parquet", "parquet", 1, 100, 0, pa.schema(list(types.items())))


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


def test_the_order_of_columns_and_their_metadata_may_differ():
    first, second = with_schema("a", id=pa.int64(), text=pa.string()), with_schema("b", text=pa.string(), id=pa.int64())
    assert merge_schemas([first, second]).equals(first.schema, check_metadata=True)


def test_a_column_is_nullable_where_any_file_says_so():
    strict = InputFile("/a", "parquet", 1, 1, 0, pa.schema([pa.field("id", pa.int64(), nullable=False)]))
    assert merge_schemas([strict, strict]).field("id").nullable is False
    assert merge_schemas([strict, with_schema("b", id=pa.int64())]).field("id").nullable is True


def test_two_types_of_one_column_are_named_with_both_files():
    files = [with_schema("a", id=pa.int64()), with_schema("b", id=pa.int64()), with_schema("c", id=pa.string())]
    with pytest.raises(InputError, match=r'"id": it is int64 in /data/a\.parquet and string in /data/c\.parquet'):
        merge_schemas(files)


def test_a_missing_or_extra_column_is_named_with_both_files():
    few, many = with_schema("a", id=pa.int64()), with_schema("b", id=pa.int64(), text=pa.string())
    with pytest.raises(InputError, match=r'"text": it is missing in /data/a\.parquet and string in /data/b\.parquet'):
        merge_schemas([few, many])
    with pytest.raises(InputError, match=r'"text": it is string in /data/b\.parquet and missing in /data/a\.parquet'):
        merge_schemas([many, few])
