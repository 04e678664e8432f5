import pyarrow as pa

from gptj_batch.stages import columns
from gptj_batch.stages.columns import PREFIX, strings, with_column, without_internal


def test_every_internal_name_begins_alike_and_is_there_once() -> None:
    names = [value for name, value in vars(columns).items() if name.isupper() and isinstance(value, str)]
    assert len(names) == 11 and len(set(names)) == 11
    assert all(name.startswith(PREFIX) for name in names)


def test_internal_columns_come_last_and_go_without_a_trace() -> None:
    schema = pa.schema([pa.field("a", pa.int8(), metadata={"of": "a"})], metadata={"of": "table"})
    table = pa.table([[1, 2]], schema=schema)
    wider = with_column(table, PREFIX + "x", pa.array(["p", None]))
    assert wider.column_names == ["a", PREFIX + "x"]
    back = without_internal(wider)
    assert back.equals(table) and back.schema.equals(schema, check_metadata=True)


def test_only_a_name_that_begins_so_is_internal() -> None:
    table = pa.table({"x" + PREFIX: [1], "__gptj": [2]})
    assert without_internal(table).column_names == table.column_names


def test_texts_are_python_values() -> None:
    assert strings(pa.table({"a": pa.array(["x", None])}), "a") == ["x", None]
