import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptj_batch.errors import ConfigError, InputError
from gptj_batch.records.read import list_files, plan_units, read_unit

from .tables import every_type, numbered, same_columns, write_arrow, write_parquet
from .text_files import json_lines, write_text


def units(path: object, max_rows: int = 7, **options: object):
    plan = plan_units(list_files(str(path), **options), max_rows)
    return [plan.unit(index) for index in range(plan.num_units)]


def test_files_come_sorted_with_their_sizes_and_one_schema(tmp_path):
    write_parquet(tmp_path / "b.parquet", numbered(5, 8).select(["text", "id"]))
    write_parquet(tmp_path / "a.parquet", numbered(0, 5))
    inputs = list_files(str(tmp_path))
    assert [Path(file.path).name for file in inputs.files] == ["a.parquet", "b.parquet"]
    assert (inputs.num_rows, inputs.skipped) == (8, ())
    assert inputs.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert all(file.schema == inputs.schema == numbered(0, 1).schema for file in inputs.files)


def test_the_format_follows_from_the_ending_and_other_files_of_a_folder_are_left_alone(tmp_path):
    write_parquet(tmp_path / "a.PARQUET", numbered(0, 5))
    write_arrow(tmp_path / "b.arrow", numbered(5, 8))
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(ConfigError, match="files of several formats"):
        list_files(str(tmp_path))
    named = list_files([f"{tmp_path}/a.PARQUET", f"{tmp_path}/b.arrow"])
    assert [file.format for file in named.files] == ["parquet", "arrow"]


def test_a_format_that_is_given_holds_for_every_file(tmp_path):
    write_parquet(tmp_path / "0000", numbered(0, 5))
    assert list_files(str(tmp_path), "parquet").num_rows == 5


def test_unknown_endings_and_formats_are_refused(tmp_path):
    (tmp_path / "a.dat").write_text("")
    with pytest.raises(ConfigError, match=r"the ending of .*a\.dat names no format; set input\.format"):
        list_files(f"{tmp_path}/a.dat")
    with pytest.raises(InputError, match=r"no file ends as .*it leads to a\.dat"):
        list_files(str(tmp_path))
    with pytest.raises(ConfigError, match=r'input\.format: "orc" is not known'):
        list_files(str(tmp_path), "orc")


def test_all_bad_files_are_reported_at_once_and_the_first_five_named(tmp_path):
    write_parquet(tmp_path / "good.parquet", numbered(0, 5))
    for index in range(7):
        (tmp_path / f"bad{index}.parquet").write_bytes(b"" if index % 2 else b"garbage" * 9)
    with pytest.raises(InputError) as caught:
        list_files(str(tmp_path))
    message = str(caught.value)
    assert "7 of 8 files cannot be read" in message and "and 2 more" in message and "bad_files=skip" in message
    assert f"{tmp_path}/bad0.parquet (63 bytes): not a whole Parquet file" in message
    assert f"{tmp_path}/bad1.parquet (0 bytes): the file is empty" in message
    assert "bad4" in message and "bad5" not in message


def test_bad_files_can_be_skipped_and_are_returned(tmp_path):
    write_parquet(tmp_path / "good.parquet", numbered(0, 5))
    (tmp_path / "bad.parquet").write_bytes(b"")
    inputs = list_files(str(tmp_path), on_bad_file="skip")
    assert inputs.num_rows == 5 and [bad.path for bad in inputs.skipped] == [f"{tmp_path}/bad.parquet"]


def test_nothing_but_bad_files_is_an_error_even_when_they_may_be_skipped(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 1 files"):
        list_files(str(tmp_path), on_bad_file="skip")


def test_files_that_disagree_are_never_skipped(tmp_path):
    write_parquet(tmp_path / "a.parquet", numbered(0, 5))
    write_parquet(tmp_path / "b.parquet", numbered(0, 5).rename_columns(["text", "id"]))
    with pytest.raises(InputError, match='do not agree on column "text"'):
        list_files(str(tmp_path), on_bad_file="skip")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_every_type_comes_back_with_its_metadata(tmp_path, name):
    write = write_parquet if name == "a.parquet" else write_arrow
    write(tmp_path / name, every_type())
    first, second = units(tmp_path, max_rows=2)
    table = pa.concat_tables([read_unit(first), read_unit(second)])
    assert same_columns(table.schema, every_type().schema)
    assert table.equals(every_type()), "values"


def test_a_column_of_nulls_without_a_type_takes_the_type_of_the_other_files(tmp_path):
    write_parquet(tmp_path / "a.parquet", numbered(0, 2).set_column(1, "text", pa.nulls(2)))
    write_parquet(tmp_path / "b.parquet", numbered(2, 4))
    first, second = (read_unit(unit) for unit in units(tmp_path))
    assert first.schema == second.schema == numbered(0, 1).schema
    assert first.column("text").to_pylist() == [None, None]


def test_columns_come_in_the_order_asked_for(tmp_path):
    write_parquet(tmp_path / "a.parquet", numbered(0, 9))
    (_, unit) = units(tmp_path)
    assert read_unit(unit, ["text", "id"]).to_pylist() == numbered(7, 9).select(["text", "id"]).to_pylist()
    with pytest.raises(ConfigError, match='no column "nope"'):
        read_unit(unit, ["nope"])


def test_every_unit_has_the_first_files_order_and_metadata(tmp_path):
    write_parquet(tmp_path / "a.parquet", numbered(0, 5).replace_schema_metadata({"from": "a"}))
    write_parquet(tmp_path / "b.parquet", numbered(5, 8).select(["text", "id"]).replace_schema_metadata({"from": "b"}))
    first, second = (read_unit(unit) for unit in units(tmp_path))
    assert first.schema.equals(second.schema, check_metadata=True) and second.schema.metadata == {b"from": b"a"}
    assert second.to_pylist() == numbered(5, 8).to_pylist()


def test_a_unit_without_rows_has_the_columns(tmp_path):
    write_parquet(tmp_path / "a.parquet", every_type().slice(0, 0))
    (unit,) = units(tmp_path)
    assert same_columns(read_unit(unit).schema, every_type().schema)


def test_names_with_dots_are_not_taken_for_nested_ones(tmp_path):
    table = pa.table({"a": [{"b": 1}], "a.b": [2], "a.c": [3]})
    write_parquet(tmp_path / "a.parquet", table)
    (unit,) = units(tmp_path)
    assert read_unit(unit, ["a.b", "a"]).to_pylist() == [{"a.b": 2, "a": {"b": 1}}]


def test_dictionaries_of_several_batches_become_one(tmp_path):
    texts = pa.array([f"v{i % 100}" for i in range(3000)]).dictionary_encode()
    write_parquet(tmp_path / "a.parquet", pa.table({"c": texts}), row_group_size=500)
    (unit,) = units(tmp_path, max_rows=3000)
    column = read_unit(unit).column("c")
    assert column.to_pylist() == texts.to_pylist()
    assert {len(chunk.dictionary) for chunk in column.chunks} == {100}


def test_dictionaries_that_do_not_fit_one_index_stay_apart(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    texts = [f"{side}{i}" for side in "lr" for i in range(100)]
    halves = [pa.array(texts[:100]).cast(kind), pa.array(texts[100:]).cast(kind)]
    write_parquet(tmp_path / "a.parquet", pa.table({"c": pa.chunked_array(halves)}), row_group_size=100)
    (unit,) = units(tmp_path, max_rows=200)
    table = read_unit(unit)
    assert table.column("c").type == kind and table.column("c").to_pylist() == texts


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_that_changed_since_it_was_planned_is_refused(tmp_path, name):
    write = write_parquet if name == "a.parquet" else write_arrow
    write(tmp_path / name, numbered(0, 9))
    unit = units(tmp_path)[1]
    write(tmp_path / name, numbered(0, 500))
    with pytest.raises(InputError, match=rf"{name}: the file changed since it was planned \(\d+ bytes then, \d+ now\)"):
        read_unit(unit)


def test_another_number_of_rows_in_as_many_bytes_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", numbered(0, 9))
    unit = units(tmp_path)[0]
    write_parquet(tmp_path / "a.parquet", numbered(0, 5), compression="none")
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\0" * (unit.file_bytes - len(content)) + content[4:])
    with pytest.raises(InputError, match=r"changed since it was planned \(9 rows then, 5 now\)"):
        read_unit(unit)


def test_a_file_that_is_gone_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", numbered(0, 9))
    unit = units(tmp_path)[1]
    path.unlink()
    with pytest.raises(InputError, match=rf"{path}: rows 7 to 9 cannot be read: .*No such file"):
        read_unit(unit)


def test_a_flipped_bit_is_found_where_the_file_has_checksums(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", numbered(0, 9), compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(b"row 4")] ^= 1
    path.write_bytes(content)
    unit = units(tmp_path)[0]
    with pytest.raises(InputError, match=r'in row group 0, column "text": .*CRC checksum verification failed'):
        read_unit(unit)


def test_memory_stays_flat_however_large_the_row_group_is(tmp_path):
    table = pa.table({"text": ["x" * 1000 + str(i) for i in range(40_000)]})
    write_parquet(tmp_path / "a.parquet", table, row_group_size=40_000, use_dictionary=False)
    unit = units(tmp_path, max_rows=100)[350]
    del table
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        assert read_unit(unit).num_rows == 100
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 12 * 2**20, "the row group has 40 MB"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.integers(1, 15),
    st.integers(1, 15),
    st.sampled_from(["parquet", "arrow", "stream"]),
)
def test_all_units_together_are_the_input_whatever_its_layout(tmp_path, num_rows, group_rows, max_rows, kind):
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    start = 0
    for index, rows in enumerate(num_rows):
        table = numbered(start, start + rows)
        if kind == "parquet":
            write_parquet(folder / f"{index}.parquet", table, row_group_size=group_rows)
        else:
            write_arrow(folder / f"{index}.arrow", table, kind == "stream", group_rows)
        start += rows
    together = pa.concat_tables([read_unit(unit) for unit in units(folder, max_rows)])
    assert together.to_pylist() == numbered(0, start).to_pylist()


def rows_of(path: object, max_rows: int = 7, **options: object) -> list[dict]:
    return pa.concat_tables([read_unit(unit) for unit in units(path, max_rows, **options)]).to_pylist()


def test_files_that_differ_and_fit_are_read_as_one_table(tmp_path):
    write_parquet(tmp_path / "a.parquet", pa.table({"id": pa.array([1], pa.int32()), "text": pa.nulls(1)}))
    write_parquet(tmp_path / "b.parquet", pa.table({"new": [[1]], "id": [2]}))
    write_parquet(tmp_path / "c.parquet", pa.table({"text": ["c"], "id": pa.array([3], pa.uint8())}))
    assert list_files(str(tmp_path)).schema.names == ["id", "text", "new"]
    assert rows_of(tmp_path) == [
        {"id": 1, "text": None, "new": None},
        {"id": 2, "text": None, "new": [1]},
        {"id": 3, "text": "c", "new": None},
    ]


def test_a_column_of_any_type_may_be_missing_in_a_file(tmp_path):
    write_parquet(tmp_path / "a.parquet", pa.table({"id": [1, 2]}))
    write_parquet(tmp_path / "b.parquet", every_type())
    first, second = (read_unit(unit) for unit in units(tmp_path))
    assert first.column("id").to_pylist() == [1, 2] and second.drop_columns(["id"]).equals(every_type())
    assert all(first.column(name).null_count == 2 for name in every_type().column_names)


def test_rows_are_counted_also_where_a_file_has_none_of_the_columns_asked_for(tmp_path):
    for name, write in (("a.parquet", write_parquet), ("b.arrow", write_arrow)):
        write(tmp_path / name, pa.table({"other": [1, 2]}))
    write_text(tmp_path / "c.jsonl", '{"other": 1}\n{}\n')
    write_text(tmp_path / "d.csv", "other\n1\n2\n")
    write_text(tmp_path / "e.jsonl", '{"id": 7}\n')
    every = [str(path) for path in sorted(tmp_path.iterdir())]
    read = [read_unit(unit, ["id"]).to_pylist() for unit in units_of(every)]
    assert read == [[{"id": None}] * 2] * 4 + [[{"id": 7}]]


def test_a_value_that_the_merged_type_would_change_is_named_with_its_column(tmp_path):
    write_parquet(tmp_path / "a.parquet", pa.table({"n": [0.5]}))
    write_parquet(tmp_path / "b.parquet", pa.table({"n": [1, 2**53 + 1]}))
    first, second = units(tmp_path)
    assert read_unit(first).to_pylist() == [{"n": 0.5}]
    with pytest.raises(InputError, match=r'b\.parquet: rows 0 to 2 .*column "n": it has a int64 that is no double'):
        read_unit(second)


def test_files_without_any_column_are_refused(tmp_path):
    write_text(tmp_path / "a.jsonl", "{}\n{}\n")
    with pytest.raises(InputError, match=r"a\.jsonl and all other files have no columns"):
        list_files(str(tmp_path))


def units_of(paths: list[str], max_rows: int = 7) -> list:
    plan = plan_units(list_files(paths), max_rows)
    return [plan.unit(index) for index in range(plan.num_units)]


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".csv.gz"])
def test_partitions_are_columns_behind_the_files_own(tmp_path, ending):
    for year, kind in (("2023", "a b"), ("2024", "__HIVE_DEFAULT_PARTITION__"), ("2024", "7")):
        path = tmp_path / f"year={year}" / f"kind={kind.replace(' ', '%20')}" / f"part{ending}"
        if ending == ".parquet":
            write_parquet(path, numbered(0, 1))
        else:
            write_text(path, '{"id": 0, "text": "row 0"}\n' if ending == ".jsonl" else "id,text\n0,row 0\n")
    schema = list_files(str(tmp_path)).schema
    assert schema == pa.schema([("id", pa.int64()), ("text", pa.string()), ("year", pa.int32()), ("kind", pa.string())])
    assert [list(row.values()) for row in rows_of(tmp_path)] == [
        [0, "row 0", 2023, "a b"],
        [0, "row 0", 2024, "7"],
        [0, "row 0", 2024, None],
    ]
    assert read_unit(units(tmp_path)[0], ["kind"]).to_pylist() == [{"kind": "a b"}]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.zst", "a.jsonl.bz2"])
@pytest.mark.parametrize("max_rows", [32, 100, 256, 1000])
def test_every_unit_of_text_has_its_rows_in_whatever_order_they_are_read(tmp_path, name, max_rows):
    rows = [{"id": i, "text": f'row "{i}",\n' + "x" * (i % 50)} for i in range(1500)]
    if "jsonl" in name:
        content = json_lines(rows)
    else:
        content = "id,text\n" + "".join(f'{row["id"]},"{row["text"].replace(chr(34), chr(34) * 2)}"\n' for row in rows)
    write_text(tmp_path / name, content)
    planned = units(tmp_path, max_rows)
    for unit in planned[::-1] + planned[::2] + planned:
        assert read_unit(unit).to_pylist() == rows[unit.start : unit.stop]
    assert read_unit(planned[1], ["text"]).column_names == ["text"]


def test_a_unit_of_text_reads_no_more_than_it_needs(tmp_path):
    path = write_text(tmp_path / "a.jsonl", json_lines({"text": "x" * 1000 + str(i)} for i in range(20_000)))
    unit = units(tmp_path, max_rows=512)[30]
    content = bytearray(path.read_bytes())
    content[: 30 * 512 * 1000] = b"!" * (30 * 512 * 1000)
    path.write_bytes(content)
    assert read_unit(unit).num_rows == 512


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_a_file_of_text_that_changed_is_refused(tmp_path, name):
    def write(last: str) -> Path:
        rows = ["1", "2", last]
        lines = ["n", *rows] if "csv" in name else [f'{{"n": {row}}}' for row in rows]
        return write_text(tmp_path / name, "\n".join(lines) + "\n")

    write("3")
    unit = units(tmp_path)[0]
    assert read_unit(unit).num_rows == 3
    write("345678")
    with pytest.raises(InputError, match=r"the file changed since it was planned \(\d+ bytes then, \d+ now\)"):
        read_unit(unit)
    path = write('"secret"')
    os.utime(path, (0, 0))
    with pytest.raises(InputError, match=rf'{name}: rows 0 to 3 cannot be read: "n" has a value that is no int64') as e:
        read_unit(replace(unit, file_bytes=path.stat().st_size))
    assert "secret" not in str(e.value)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}: rows 0 to 3 cannot be read: .*No such file"):
        read_unit(unit)


def test_memory_stays_flat_however_long_a_text_file_is(tmp_path):
    with (tmp_path / "a.jsonl").open("w") as file:
        file.writelines(f'{{"id": {i}, "text": "{"x" * 500}"}}\n' for i in range(100_000))
    tracemalloc.start()
    try:
        unit = units(tmp_path, max_rows=512)[150]
        assert read_unit(unit).column("id")[0].as_py() == 150 * 512
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25 * 2**20, "the file has 52 MB"


def test_dictionaries_inside_of_lists_and_structs_are_read_over_several_row_groups(tmp_path):
    words = pa.array([f"v{i % 9}" for i in range(90)]).dictionary_encode()
    lists = pa.ListArray.from_arrays(pa.array(range(91), pa.int32()), words)
    table = pa.table({"lists": lists, "structs": pa.StructArray.from_arrays([words], ["word"])})
    write_parquet(tmp_path / "a.parquet", table, row_group_size=20)
    (unit,) = units(tmp_path, max_rows=90)
    assert read_unit(unit).equals(table)
