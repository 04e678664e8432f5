"""A table of every type that a Parquet or Arrow file may bring along and Parquet can hold."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pyarrow as pa
from unit.records.tables import every_type

NUM_ROWS = 99
_DICTIONARY = pa.dictionary(pa.int16(), pa.large_string())


def rare_types() -> pa.Table:
    """Return the types of `every_type` and beyond: zones, nested dictionaries, extensions; each with nulls inside."""
    common = pa.concat_tables([every_type()] * (NUM_ROWS // 3))
    columns = {"text": pa.array([f"row {row}" for row in range(NUM_ROWS)]), **_rare_columns()}
    fields = [pa.field(name, column.type, metadata={"note": name}) for name, column in columns.items()]
    fields += [pa.field("unknown_extension", pa.int32(), metadata={"ARROW:extension:name": "acme.colour"})]
    schema = pa.schema([*fields, *common.schema], metadata={"who": "tests"})
    unknown = pa.array([None, 2, 3] * 33, pa.int32())
    return pa.table([*columns.values(), unknown, *common.columns], schema=schema)


def _repeated(values: list[Any], kind: pa.DataType) -> pa.Array:
    assert len(values) == 3
    return pa.array(values * 33, kind)


def _rare_columns() -> dict[str, pa.Array]:
    tensor = pa.fixed_shape_tensor(pa.float32(), (2, 2))
    tensors = pa.FixedSizeListArray.from_arrays(pa.array([1.0] * 4 * NUM_ROWS, pa.float32()), 4)
    noon = dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC)
    return {
        "all_null_struct": _repeated([None] * 3, pa.struct([("a", pa.null()), ("b", pa.int8())])),
        "null_list": _repeated([[None], None, []], pa.list_(pa.null())),
        "tz_offset": _repeated([noon, None, noon], pa.timestamp("us", "+05:30")),
        "tz_utc": _repeated([noon, None, noon], pa.timestamp("ns", "UTC")),
        "time_us": _repeated([dt.time(1, 2, 3), None, dt.time(0)], pa.time64("us")),
        "dict_large": _repeated(["a", None, "b"], pa.large_string()).cast(_DICTIONARY),
        "dict_int": pa.DictionaryArray.from_arrays(
            pa.array([0, None, 1] * 33, pa.int8()), pa.array([7, 9], pa.int64())
        ),
        "list_of_dict": pa.ListArray.from_arrays(
            pa.array(range(NUM_ROWS + 1), pa.int32()), pa.array(["x", None, "y"] * 33).dictionary_encode()
        ),
        "struct_of_dict": pa.StructArray.from_arrays(
            [pa.array(["x", None, "y"] * 33).dictionary_encode(), pa.array([1, 2, 3] * 33)], ["d", "n"]
        ),
        "map_of_struct": _repeated(
            [[("k", {"a": Decimal("1.5")})], None, [("l", None)]],
            pa.map_(pa.string(), pa.struct([("a", pa.decimal256(60, 1))])),
        ),
        "list_of_views": _repeated([["a", None], None, []], pa.list_(pa.string_view())),
        "fixed_of_list": _repeated([[[1], None], None, [[], [2]]], pa.list_(pa.list_(pa.int8()), 2)),
        "not_null_inside": _repeated([[1], [], [2]], pa.list_(pa.field("item", pa.int8(), nullable=False))),
        "tensor": pa.ExtensionArray.from_storage(tensor, tensors.cast(tensor.storage_type)),
        "json": pa.ExtensionArray.from_storage(pa.json_(), _repeated(['{"a": 1}', None, "[]"], pa.string())),
        "bool8": pa.ExtensionArray.from_storage(pa.bool8(), _repeated([1, None, 0], pa.int8())),
        "half_floats": _repeated([1.5, None, 2.5], pa.float16()),
    }
