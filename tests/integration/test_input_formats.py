"""Every format of input through Ray and the fake backend to Parquet, and every type that an input may have."""

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from unit.records.tables import same_columns, write_arrow
from unit.records.text_files import write_text

from integration.desk import GENERATE, GENERATED, Desk
from integration.rare_types import rare_types
from integration.running import output_table, run_report

pytestmark = [pytest.mark.timeout(600), pytest.mark.without_ray]

FAKE = {"backend": {"kind": "fake"}}
ROWS = [{"id": i, "text": f'row "{i}",\nof {i % 7}', "x": i / 4 if i % 3 else None} for i in range(70)]


def write_rows(folder: Path, kind: str) -> Path:
    """Write ROWS as two files of a format, and return what leads to them."""
    folder.mkdir(exist_ok=True)
    for index, rows in enumerate((ROWS[:50], ROWS[50:])):
        table = pa.Table.from_pylist(rows)
        if kind == "arrow":
            write_arrow(folder / f"{index}.arrow", table, stream=index == 1)
        elif kind.startswith("jsonl"):
            write_text(folder / f"{index}.{kind}", "".join(json.dumps(row) + "\n" for row in rows))
        elif kind.startswith("csv"):
            write_text(folder / f"{index}.{kind}", table.to_pandas().to_csv(index=False))
        elif kind == "hive":
            (folder / f"part={index}").mkdir()
            pq.write_table(table, folder / f"part={index}" / "a.parquet")
    if kind == "huggingface":
        datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved", num_shards=2)
        return folder / "saved"
    return folder


@pytest.mark.parametrize(
    "kind",
    ["arrow", "jsonl", "jsonl.gz", "csv", "csv.zst", "hive", pytest.param("huggingface", marks=pytest.mark.on_ray)],
)
def test_a_format_goes_through_the_pipeline(desk: Desk, kind: str) -> None:
    source = write_rows(desk.folder / "input", kind)
    ended = desk.run(desk.job(source, GENERATE, **FAKE))
    assert ended.code == 0, ended.stderr
    table = output_table(desk.output())
    added = ["part"] if kind == "hive" else []
    assert table.column_names == ["id", "text", "x", *added, *GENERATED]
    assert table.select(["id", "text", "x"]).to_pylist() == ROWS
    assert table.column("error").null_count == len(ROWS)
    if kind == "hive":
        assert table.column("part").to_pylist() == [0] * 50 + [1] * 20
    assert desk.run(desk.job(source, GENERATE, **FAKE)).code == 0, "a second run finds the same files"


def test_only_the_columns_asked_for_are_kept(desk: Desk) -> None:
    source = write_rows(desk.folder / "input", "csv")
    assert desk.run(desk.job(source, GENERATE, input={"columns": ["text"]}, **FAKE)).code == 0
    assert output_table(desk.output()).column_names == ["text", *GENERATED]


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("b.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: it is not JSON"),
        ("b.csv", b"text,id\na\n", "line 2: the row has 1 field, and the header 2"),
        ("b.csv.gz", gzip.compress(b"text\n" + b"word\n" * 5000, mtime=0)[:-20], "not a whole CSV file: Truncated"),
        ("b.jsonl.bz2", bz2.compress(b'{"text": "a"}\n')[:-5], "not a whole JSON lines file: Truncated"),
        ("b.arrow", b"ARROW1 and nothing else", "not a whole Arrow file"),
    ],
)
def test_a_bad_file_is_named_and_can_be_left_out(desk: Desk, name: str, content: bytes, rule: str) -> None:
    good = name.replace("b.", "a.")
    if "arrow" in name:
        write_arrow(desk.folder / good, pa.table({"text": ["one"]}))
    else:
        write_text(desk.folder / good, '{"text": "one"}\n' if "jsonl" in name else "text\none\n")
    (desk.folder / name).write_bytes(content)
    source: Any = f"{desk.folder}/[ab].{name.partition('.')[2]}"
    ended = desk.run(desk.job(source, GENERATE, **FAKE))
    assert ended.code == 2
    assert f"1 of 2 files cannot be read: {desk.folder}/{name} ({len(content)} bytes): {rule}" in ended.stderr
    ended = desk.run(desk.job(source, GENERATE, errors={"bad_files": "skip"}, **FAKE))
    assert ended.code == 3, ended.stderr
    assert name in ended.stdout + ended.stderr
    assert output_table(desk.output()).column("text").to_pylist() == ["one"]
    assert name in json.dumps(run_report(desk.output()))


def test_a_header_alone_gives_an_output_of_columns_without_rows(desk: Desk) -> None:
    write_text(desk.folder / "a.csv", "id,text\n")
    ended = desk.run(desk.job(desk.folder / "a.csv", GENERATE, **FAKE))
    assert ended.code == 0, ended.stderr
    table = output_table(desk.output())
    assert (table.num_rows, table.column_names) == (0, ["id", "text", *GENERATED])


def test_a_file_that_changed_between_two_runs_is_seen(desk: Desk) -> None:
    write_text(desk.folder / "a.jsonl", '{"text": "one"}\n')
    job = desk.job(desk.folder / "a.jsonl", GENERATE, **FAKE)
    assert desk.run(job).code == 0
    write_text(desk.folder / "a.jsonl", '{"text": "two"}\n')
    ended = desk.run(job)
    assert ended.code == 2 and "a.jsonl" in ended.stderr and "another configuration" in ended.stderr


@pytest.mark.parametrize(
    ("ending", "form"),
    [pytest.param("parquet", "parquet", marks=pytest.mark.on_ray), ("arrow", "parquet"), ("arrow", "arrow")],
)
def test_every_type_comes_out_as_it_went_in(desk: Desk, ending: str, form: str) -> None:
    source = desk.folder / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(rare_types(), source, row_group_size=40)
    else:
        write_arrow(source, rare_types(), batch_rows=33)
    # Of a type that Parquet does not know by itself (a dictionary of large strings), what it makes of it.
    pq.write_table(rare_types(), desk.folder / "expected")
    before = pq.read_table(desk.folder / "expected")
    ended = desk.run(desk.job(source, GENERATE, output={"format": form}, **FAKE))
    assert ended.code == 0, ended.stderr
    if form == "arrow":
        after = pa.ipc.open_file(next(desk.output().glob("part-*.arrow"))).read_all()
    else:
        after = output_table(desk.output())
    kept = after.select(before.column_names)
    metadata = {key: value for key, value in kept.schema.metadata.items() if key != b"gptj_batch"}
    for name in before.column_names:
        assert kept.schema.field(name).equals(before.schema.field(name)), name
        assert kept.column(name).to_pylist() == before.column(name).to_pylist(), name
    assert same_columns(kept.schema.with_metadata(metadata), before.schema)
    lost = [field.name for field in before.schema if not field.equals(rare_types().schema.field(field.name))]
    assert lost == ["dict_large", "dict_int"]


def test_the_index_of_pandas_comes_back(desk: Desk) -> None:
    import pandas as pd

    frame = pd.DataFrame({"text": [f"row {i}" for i in range(70)]}, index=pd.Index(range(100, 170), name="when"))
    frame["kind"] = pd.Categorical(["a", "b"] * 35)
    frame.to_parquet(desk.folder / "a.parquet")
    assert desk.run(desk.job(desk.folder / "a.parquet", GENERATE, **FAKE)).code == 0
    after = pd.read_parquet(next(desk.output().glob("part-*")))
    pd.testing.assert_frame_equal(after[["text", "kind"]], frame)
