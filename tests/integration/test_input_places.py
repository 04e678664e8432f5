"""Where records may lie besides files on a disk: a bucket, a cache of `datasets`, a folder of its splits."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from unit.records.s3_endpoint import Endpoint, running_endpoint

from integration.clusters import running_cluster
from integration.desk import GENERATE, GENERATED, Desk
from integration.running import output_table
from integration.tiny_model import TinyModel

pytestmark = [pytest.mark.timeout(600), pytest.mark.extended]

FAKE = {"backend": {"kind": "fake"}}
ROWS = [{"id": i, "text": f"row {i}"} for i in range(70)]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with running_endpoint() as endpoint:
        endpoint.make_bucket("records")
        yield endpoint


@pytest.fixture(scope="module")
def places(endpoint: Endpoint, tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk on a cluster whose workers were started with the bucket's credentials."""
    with running_cluster() as cluster:
        yield Desk(tmp_path_factory.mktemp("places"), tiny, cluster)


def put(key: str, file: Path) -> None:
    with pyarrow.fs.FileSystem.from_uri("s3://records")[0].open_output_stream(f"records/{key}") as stream:
        stream.write(file.read_bytes())


def test_a_bucket_is_read_by_file_folder_and_glob_with_its_partitions(places: Desk) -> None:
    for number, rows in enumerate((ROWS[:50], ROWS[50:])):
        file = places.folder / f"{number}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        put(f"in/day={number}/a b.parquet", file)
    put("in/_hidden/c.parquet", file)
    expected = {"in": 70, "in/day=1": 20, "in/*/*.parquet": 70, "in/day=0/a b.parquet": 50}
    for index, (key, num_rows) in enumerate(expected.items()):
        ended = places.run(places.job(Path("s3"), GENERATE, f"{index}", **FAKE), f"input.path=s3://records/{key}")
        assert ended.code == 0, ended.stderr
        table = output_table(places.output(f"{index}"))
        assert table.num_rows == num_rows and set(table.column_names) >= {"id", "text", *GENERATED}
        if num_rows == 70:
            assert table.column("day").to_pylist() == [0] * 50 + [1] * 20
            assert table.select(["id", "text"]).to_pylist() == ROWS
    ended = places.run(places.job(Path("s3"), GENERATE, **FAKE), "input.path=s3://records/nothing")
    assert ended.code == 2 and "nothing matches" in ended.stderr


def test_a_cache_of_datasets_and_one_split_of_a_saved_folder_are_read(places: Desk) -> None:
    halves = {name: datasets.Dataset.from_list(rows) for name, rows in (("a", ROWS[:40]), ("b", ROWS[40:]))}
    datasets.DatasetDict(halves).save_to_disk(places.folder / "saved")
    ended = places.run(places.job(places.folder / "saved", GENERATE, "of-split", input={"split": "b"}, **FAKE))
    assert ended.code == 0, ended.stderr
    assert output_table(places.output("of-split")).select(["id", "text"]).to_pylist() == ROWS[40:]
    unsaid = places.run(places.job(places.folder / "saved", GENERATE, "unsaid", **FAKE))
    assert unsaid.code == 2 and "has the splits a, b; name one of them" in unsaid.stderr

    (places.folder / "rows.jsonl").write_text("".join(f'{{"id": {r["id"]}, "text": "{r["text"]}"}}\n' for r in ROWS))
    cached = datasets.load_dataset(
        "json", data_files=str(places.folder / "rows.jsonl"), split="train", cache_dir=str(places.folder / "cache")
    )
    folder = Path(cached.cache_files[0]["filename"]).parent
    ended = places.run(places.job(folder, GENERATE, "of-cache", **FAKE))
    assert ended.code == 0, ended.stderr
    assert output_table(places.output("of-cache")).select(["id", "text"]).to_pylist() == ROWS
