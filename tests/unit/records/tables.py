"""Tables and files that the tests of records share."""

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def every_type() -> pa.Table:
    """Every type that Parquet gives back as it was, each with a value, a null, and another value."""
    columns = {
        **{str(kind): pa.array([1, None, 3]).cast(kind) for kind in INTEGERS},
        **{f"float_{kind}": pa.array([1.5, None, float("-inf")], pa.float64()).cast(kind) for kind in FLOATS},
        **{f"dec_{kind}": pa.array([Decimal("1.25"), None, Decimal("-3.50")], kind) for kind in DECIMALS},
        **{f"ts_{unit}": pa.array([1, None, -3], pa.timestamp(unit)) for unit in ("ms", "us", "ns")},
        **{f"tz_{unit}": pa.array([1, None, -3], pa.timestamp(unit, "Europe/Berlin")) for unit in ("ms", "us", "ns")},
        **{f"dur_{unit}": pa.array([1, None, -3], pa.duration(unit)) for unit in ("s", "ms", "us", "ns")},
        "date": pa.array([dt.date(2024, 2, 29), None, dt.date(1969, 1, 1)]),
        "time_ms": pa.array([1, None, 3], pa.time32("ms")),
        "time_ns": pa.array([1, None, 3], pa.time64("ns")),
        "bool": pa.array([True, None, False]),
        **{f"text_{kind}": pa.array(["héllo 😀", None, ""], kind) for kind in TEXTS},
        **{f"bytes_{kind}": pa.array([b"\x00\xff", None, b""], kind) for kind in BYTES},
        "fixed_bytes": pa.array([b"ab", None, b"cd"], pa.binary(2)),
        "null": pa.nulls(3),
        "dict_int8": pa.array(["a", None, "b"]).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
        "dict_ordered": pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int16()), ["x", "y"], ordered=True),
        "list": pa.array([[1, None], None, []], pa.list_(pa.int32())),
        "large_list": pa.array([["a", None], None, []], pa.large_list(pa.string())),
        "fixed_list": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "struct": pa.array([{"a": 1, "b": None}, None, {"a": None, "b": ["x", None]}], STRUCT),
        "map": pa.array([[("k", 1.5)], None, []], pa.map_(pa.string(), pa.float64())),
        "deep": pa.array([[{"k": [("a", [1])]}], None, [None, {"k": None}]], DEEP),
        "uuid": pa.array([b"0123456789abcdef", None, b"fedcba9876543210"], pa.uuid()),
    }
    fields = [pa.field(name, column.type, metadata={"note": f"of {name}"}) for name, column in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields, metadata={"who": "tests"}))


INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
FLOATS = (pa.float16(), pa.float32(), pa.float64())
DECIMALS = (pa.decimal32(7, 2), pa.decimal64(12, 2), pa.decimal128(20, 3), pa.decimal256(50, 3))
TEXTS = (pa.string(), pa.large_string(), pa.string_view())
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
STRUCT = pa.struct([("a", pa.int8()), ("b", pa.list_(pa.string()))])
DEEP = pa.list_(pa.struct([("k", pa.map_(pa.string(), pa.list_(pa.int8())))]))


def numbered(start: int, stop: int) -> pa.Table:
    """Rows whose values say which row they are."""
    texts = pa.array([f"row {i}" for i in range(start, stop)], pa.string())
    return pa.table({"id": pa.array(range(start, stop), pa.int64()), "text": texts})


def same_columns(one: pa.Schema, other: pa.Schema) -> bool:
    """Tell whether names, types and metadata are the same; Parquet calls the items of a list "element"."""
    notes = [[field.metadata for field in schema] for schema in (one, other)]
    return one.equals(other) and one.metadata == other.metadata and notes[0] == notes[1]


def write_parquet(path: Path, table: pa.Table, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def write_arrow(path: Path, table: pa.Table, stream: bool = False, batch_rows: int = 7) -> Path:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


def bad_utf8(*values: bytes | None) -> pa.Array:
    """A string array whose bytes nobody checked."""
    as_bytes = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), as_bytes.buffers())
