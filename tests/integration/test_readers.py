"""The output as others read it: pandas, polars, duckdb, pyarrow, datasets, and what Spark goes by."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from integration.desk import Desk
from integration.running import output_table

pytestmark = [pytest.mark.timeout(600), pytest.mark.without_ray]

LABELS = ["World", "Sports", "a/b ü"]
CLASSIFY = {"kind": "classify", "prompt": "{{ text }}\nTopic:", "labels": LABELS}
FORMS: dict[str, dict[str, Any]] = {
    "parquet": {},
    "parquet-by": {"partition_by": ["label", "shard"]},
    "arrow": {"format": "arrow"},
    "arrow-by": {"format": "arrow", "partition_by": ["label", "shard"]},
    "jsonl": {"format": "jsonl"},
    "jsonl-gz": {"format": "jsonl", "compression": "gzip"},
    "jsonl-by": {"format": "jsonl", "partition_by": ["label", "shard"]},
}


def optional(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install -e .[dev]")


@pytest.fixture(scope="module")
def outputs(new_desk: Callable[[str], Desk], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows in every form; pandas wrote the input, with an index of names."""
    folder = tmp_path_factory.mktemp("frame")
    rows = range(60)
    frame = pd.DataFrame(
        {
            "id": rows,
            "text": [f"row {row} of the news" for row in rows],
            "shard": pd.array([None if row % 5 == 4 else row % 5 for row in rows], "Int64"),
            "day": pd.date_range("2024-01-01", periods=60, tz="UTC"),
            "kind": pd.Categorical([f"kind {row % 4}" for row in rows]),
            "tags": [[f"t{row}"] * (row % 3) for row in rows],
        },
        index=pd.Index([f"name {row}" for row in rows], name="name"),
    )
    frame.to_parquet(folder / "a.parquet")
    desk = new_desk("readers")
    for name, output in FORMS.items():
        ended = desk.run(desk.job(folder, CLASSIFY, name, backend={"kind": "fake"}, output=output))
        assert ended.code == 0, ended.stderr
    return {name: desk.output(name) for name in FORMS}


@pytest.fixture(scope="module")
def expected(outputs: dict[str, Path]) -> list[tuple[int, str, str, float, int | None]]:
    """The columns that every reader must find, from Parquet files one by one."""
    table = output_table(outputs["parquet"])
    assert len(set(table.column("label").to_pylist())) > 1
    return triples(table)


COLUMNS = ["id", "text", "label", "label_score", "shard"]


def triples(table: pa.Table) -> list[Any]:
    *columns, shards = (table.column(name).to_pylist() for name in COLUMNS)
    whole = [None if shard is None or shard != shard else int(shard) for shard in shards]
    return sorted(zip(*columns, whole, strict=True))


def of_frame(frame: pd.DataFrame) -> list[Any]:
    columns = {name: [None if value is pd.NA else value for value in frame[name].tolist()] for name in COLUMNS}
    return triples(pa.table(columns))


@pytest.mark.parametrize("name", ["parquet", "parquet-by"])
def test_pandas(outputs: dict[str, Path], expected: list[Any], name: str) -> None:
    # pandas fails on a partition of nulls, its own too, unless it is asked for values and not for categories.
    how = {"partitioning": ds.partitioning(flavor="hive")} if name == "parquet-by" else {}
    frame = pd.read_parquet(outputs[name], **how)
    assert frame.index.name == "name" and frame.loc["name 7", "id"] == 7
    assert of_frame(frame) == expected
    assert isinstance(frame["day"].dtype, pd.DatetimeTZDtype) and isinstance(frame["kind"].dtype, pd.CategoricalDtype)


@pytest.mark.parametrize(("name", "ending"), [("jsonl", "jsonl"), ("jsonl-gz", "jsonl.gz")])
def test_pandas_reads_json_lines(outputs: dict[str, Path], expected: list[Any], name: str, ending: str) -> None:
    frame = pd.read_json(outputs[name] / f"part-00000.{ending}", lines=True, precise_float=True)
    assert of_frame(frame) == expected
    assert frame["tags"][5] == ["t5", "t5"] and frame["label_scores"][0].keys() == set(LABELS)


def test_pandas_reads_arrow_files(outputs: dict[str, Path], expected: list[Any]) -> None:
    assert of_frame(pd.read_feather(outputs["arrow"] / "part-00000.arrow")) == expected


@pytest.mark.parametrize("name", ["parquet", "parquet-by", "arrow", "arrow-by", "jsonl", "jsonl-by"])
def test_pyarrow_dataset(outputs: dict[str, Path], expected: list[Any], name: str) -> None:
    kind = {"arrow": "ipc", "jsonl": "json"}.get(name.removesuffix("-by"), "parquet")
    dataset = ds.dataset(outputs[name], format=kind, partitioning="hive")
    # pyarrow 26 waits for ever on several JSON files where its pool has one thread.
    assert triples(dataset.to_table(use_threads=kind != "json")) == expected


@pytest.mark.parametrize("name", ["parquet", "parquet-by"])
def test_polars(outputs: dict[str, Path], expected: list[Any], name: str) -> None:
    polars = optional("polars")
    # By a glob: of a folder it wants that all files end alike, and `_SUCCESS` does not.
    lazy = polars.scan_parquet(f"{outputs[name]}/**/*.parquet", hive_partitioning=True)
    assert triples(lazy.collect().to_arrow()) == expected
    by_label = lazy.filter(polars.col("label") == LABELS[2]).collect()
    assert sorted(by_label["id"].to_list()) == [row[0] for row in expected if row[2] == LABELS[2]]


def test_polars_reads_arrow_files_and_json_lines(outputs: dict[str, Path], expected: list[Any]) -> None:
    polars = optional("polars")
    assert triples(polars.read_ipc(outputs["arrow"] / "part-*.arrow").to_arrow()) == expected
    assert triples(polars.read_ndjson(outputs["jsonl"] / "part-00000.jsonl").to_arrow()) == expected
    assert triples(polars.scan_ndjson(outputs["jsonl"] / "part-*.jsonl").collect().to_arrow()) == expected


QUERIES = {
    "parquet": "read_parquet('{}/*.parquet')",
    "parquet-by": "read_parquet('{}/**/*.parquet', hive_partitioning = true)",
    "jsonl": "read_json('{}/*.jsonl')",
    "jsonl-gz": "read_json('{}/*.jsonl.gz')",
    "jsonl-by": "read_json('{}/**/*.jsonl', hive_partitioning = true)",
}


@pytest.mark.parametrize("name", QUERIES)
def test_duckdb(outputs: dict[str, Path], expected: list[Any], name: str) -> None:
    duckdb = optional("duckdb")
    source = QUERIES[name].format(outputs[name])
    query = f"select id, text, label, label_score, try_cast(shard as bigint) as shard from {source}"
    with duckdb.connect() as connection:
        assert triples(connection.sql(query).to_arrow_table()) == expected
        ids = connection.sql(f"select id from {source} where label = '{LABELS[2]}' order by id").fetchall()
    assert [row[0] for row in ids] == [row[0] for row in expected if row[2] == LABELS[2]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`datasets.load_dataset` without a network."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return lambda *path, **files: datasets.load_dataset(*path, split="train", cache_dir=str(tmp_path), **files)


@pytest.mark.parametrize("name", ["jsonl", "jsonl-gz"])
def test_datasets(outputs: dict[str, Path], expected: list[Any], load: Callable[..., Any], name: str) -> None:
    loaded = load(str(outputs[name]), data_files="part-*")
    assert triples(loaded.with_format("arrow")[:]) == expected
    assert loaded[0]["label_scores"].keys() == set(LABELS)


def test_datasets_knows_no_maps(outputs: dict[str, Path], load: Callable[..., Any]) -> None:
    # The limit is theirs, and README says it: where this fails they can, and the test below may take `outputs`.
    with pytest.raises(ValueError, match=r"map<.*does not have a datasets dtype equivalent"):
        load("parquet", data_files=str(outputs["parquet"] / "part-*"))


@pytest.fixture(scope="module")
def generations(new_desk: Callable[[str], Desk], source: Path) -> Desk:
    """The outputs of a task that adds no map."""
    desk = new_desk("generations")
    task = {"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 4}
    blocks: dict[str, Any] = {"backend": {"kind": "fake"}, "input": {"columns": ["id", "text"]}}
    for name in ("parquet", "parquet-by", "arrow", "jsonl"):
        output = {"partition_by": ["num_prompt_tokens"]} if name == "parquet-by" else FORMS[name]
        ended = desk.run(desk.job(source / "c.parquet", task, name, output=output, **blocks))
        assert ended.code == 0, ended.stderr
    return desk


def test_pandas_reads_partitions_without_nulls_as_they_are(generations: Desk) -> None:
    frame = pd.read_parquet(generations.output("parquet-by"))
    assert sorted(frame["id"]) == list(range(40, 65))
    expected = pd.read_parquet(generations.output("parquet")).set_index("id")["num_prompt_tokens"]
    assert (frame.set_index("id")["num_prompt_tokens"].astype(int).sort_index() == expected).all()


@pytest.mark.parametrize(
    ("name", "files"), [("parquet", "part-*"), ("parquet-by", "*/part-*"), ("arrow", "part-*"), ("jsonl", "part-*")]
)
def test_datasets_reads_columns_without_maps(
    generations: Desk, load: Callable[..., Any], name: str, files: str
) -> None:
    builder = {"jsonl": "json"}.get(name.partition("-")[0], name.partition("-")[0])
    loaded = load(builder, data_files=str(generations.output(name) / files))
    assert sorted(loaded["id"]) == list(range(40, 65)) and set(loaded["finish_reason"]) <= {"stop", "length"}


@pytest.mark.parametrize("name", FORMS)
def test_what_spark_goes_by(outputs: dict[str, Path], name: str) -> None:
    """Spark leaves out names with "_" and ".", takes `column=value` folders, and wants one schema in all files."""
    output = outputs[name]
    seen = [path for path in output.iterdir() if path.name[0] not in "_."]
    assert (output / "_SUCCESS").is_file() and all(path.name.startswith(("part-", "label=")) for path in seen)
    if name.endswith("-by"):
        folders = {folder.name for folder in output.glob("label=*/*")}
        assert (
            folders <= {f"shard={value}" for value in (0, 1, 2, 3, "__HIVE_DEFAULT_PARTITION__")} and len(folders) > 1
        )
        assert (output / "label=a%2Fb%20%C3%BC").is_dir() or (output / "label=World").is_dir()
    if name.startswith("parquet"):
        schemas = [pq.read_schema(part) for part in output.rglob("part-*.parquet")]
        assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)


def test_a_run_that_is_not_finished_shows_readers_nothing(outputs: dict[str, Path], tmp_path: Path) -> None:
    units = tmp_path / "_gptj_batch" / "units"
    units.mkdir(parents=True)
    part = outputs["parquet"] / "part-00000.parquet"
    (units / "unit-00000000.parquet").write_bytes(part.read_bytes())
    assert ds.dataset(tmp_path).count_rows() == 0
    if importlib.util.find_spec("duckdb"):
        with optional("duckdb").connect() as connection, pytest.raises(Exception, match="No files found"):
            connection.sql(f"select * from read_parquet('{tmp_path}/*.parquet')").fetchall()
