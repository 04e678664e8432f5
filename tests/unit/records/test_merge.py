from dataclasses import dataclass

import pyarrow as pa
import pytest

from gptj_batch.errors import InputError
from gptj_batch.records.merge import conform, merge_schemas, merge_types


@dataclass(frozen=True)
class File:
    path: str
    schema: pa.Schema
    format: str = "parquet"


def file(name: str, fields: dict[str, pa.DataType], file_format: str = "parquet") -> File:
    return File(f"/data/{name}", pa.schema(list(fields.items())), file_format)


I8, I32, I64, U8, U32, U64 = pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64()
TEXT = pa.string()
DICT8, DICT32 = pa.dictionary(I8, TEXT), pa.dictionary(I32, TEXT)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.null(), TEXT, TEXT),
        (I32, I64, I64),
        (U8, U32, U32),
        (U8, I8, pa.int16()),
        (U32, I8, I64),
        (I64, pa.float32(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.decimal128(10, 2), pa.decimal128(12, 4), pa.decimal128(12, 4)),
        (pa.decimal128(38, 0), pa.decimal128(10, 9), pa.decimal256(47, 9)),
        (pa.timestamp("ms", "UTC"), pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC")),
        (pa.time32("s"), pa.time64("us"), pa.time64("us")),
        (TEXT, pa.large_string(), pa.large_string()),
        (TEXT, pa.string_view(), pa.large_string()),
        (pa.binary(), pa.large_binary(), pa.large_binary()),
        (pa.list_(I32), pa.list_(I64), pa.list_(I64)),
        (pa.list_(pa.null()), pa.list_(TEXT), pa.list_(TEXT)),
        (pa.list_(I32), pa.large_list(I32), pa.large_list(I32)),
        (pa.list_(pa.float32(), 2), pa.list_(pa.float64(), 2), pa.list_(pa.float64(), 2)),
        (pa.list_(pa.float32(), 2), pa.list_(pa.float32(), 3), pa.list_(pa.float32())),
        (pa.map_(TEXT, I32), pa.map_(TEXT, I64), pa.map_(TEXT, I64)),
        (pa.struct([("a", I32)]), pa.struct([("b", TEXT), ("a", I64)]), pa.struct([("a", I64), ("b", TEXT)])),
        (DICT8, DICT32, DICT32),
        (DICT8, TEXT, TEXT),
        (pa.uuid(), pa.uuid(), pa.uuid()),
    ],
)
def test_two_types_that_fit_give_the_one_that_holds_both(one, other, both):
    assert merge_types(one, other) == both
    assert merge_types(other, one) in (both, pa.struct([("b", TEXT), ("a", I64)]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (I64, TEXT),
        (pa.bool_(), I8),
        (U64, I64),
        (pa.date32(), TEXT),
        (pa.timestamp("us", "UTC"), pa.timestamp("us")),
        (pa.timestamp("us", "UTC"), pa.timestamp("us", "Europe/Berlin")),
        (TEXT, pa.binary()),
        (pa.list_(I64), I64),
        (pa.struct([("a", I64)]), pa.struct([("a", TEXT)])),
        (pa.map_(TEXT, I64), pa.struct([("a", I64)])),
        (pa.uuid(), pa.binary(16)),
        (DICT8, I64),
        (pa.decimal256(76, 0), pa.decimal256(10, 10)),
    ],
)
def test_two_types_that_do_not_fit_give_none(one, other):
    assert merge_types(one, other) is None and merge_types(other, one) is None


def test_columns_come_in_the_order_of_the_first_file_then_new_ones():
    files = [file("a", {"id": I32, "text": TEXT}), file("b", {"new": TEXT, "text": pa.null(), "id": I64})]
    merged = merge_schemas(files)
    assert merged == pa.schema([("id", I64), ("text", TEXT), ("new", TEXT)])


def test_a_column_that_a_file_lacks_is_nullable_and_metadata_are_the_first_files():
    strict = pa.field("id", I64, nullable=False, metadata={"note": "key"})
    one = File("/a", pa.schema([strict], metadata={"who": "first"}))
    both = merge_schemas([one, one])
    assert both.field("id").nullable is False and both.metadata == {b"who": b"first"}
    lacking = merge_schemas([one, file("b", {"other": TEXT})])
    assert lacking.field("id").nullable is True and lacking.field("id").metadata == {b"note": b"key"}


def test_what_does_not_fit_is_named_with_both_files_the_column_and_both_types():
    files = [file("a", {"id": I32}), file("b", {"id": I64}), file("c", {"id": TEXT})]
    with pytest.raises(InputError, match=r'"id": it is int64 in /data/b and string in /data/c\. Write both'):
        merge_schemas(files)


def test_columns_of_csv_that_differ_are_text_which_their_fields_are():
    files = [file("a", {"zip": I64}, "csv"), file("b", {"zip": TEXT}, "csv")]
    assert merge_schemas(files) == pa.schema([("zip", TEXT)])
    with pytest.raises(InputError, match='do not agree on column "zip"'):
        merge_schemas([files[0], file("b", {"zip": TEXT}, "jsonl")])


def test_values_are_read_as_the_merged_type():
    wide = pa.list_(pa.struct([("b", TEXT), ("a", pa.float64())]))
    column = pa.chunked_array([pa.array([[{"a": 1}], None, []])])
    assert conform(column, wide).to_pylist() == [[{"b": None, "a": 1.0}], None, []]
    assert conform(pa.chunked_array([pa.nulls(2)]), pa.uuid()).null_count == 2
    assert conform(pa.chunked_array([pa.array(["a", None]).dictionary_encode()]), TEXT).to_pylist() == ["a", None]


def test_a_value_that_the_merged_type_would_change_is_refused():
    with pytest.raises(ValueError, match="it has a int64 that is no double"):
        conform(pa.chunked_array([pa.array([2**53 + 1])]), pa.float64())
