"""Folders of very many files, of none, and of empty ones."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integration.desk import GENERATE, Desk
from integration.running import output_table

pytestmark = [pytest.mark.timeout(600), pytest.mark.extended]

FAKE = {"kind": "fake"}
NUM_FILES = 10_000


def test_a_folder_of_ten_thousand_files_is_planned_and_read_in_order(desk: Desk) -> None:
    folder = desk.folder / "many"
    folder.mkdir()
    kinds = [folder / f"kind-{number}" for number in range(100)]
    for number, kind in enumerate(kinds):
        pq.write_table(pa.table({"id": [number], "text": [f"text {number}"]}), kind)
    for number in range(NUM_FILES):  # links: the same bytes under many names
        os.link(kinds[number % 100], folder / f"{number:05d}.parquet")
    for kind in kinds:
        kind.unlink()
    ended = desk.run(desk.job(folder, GENERATE, backend=FAKE, input={"limit": 12}))
    assert ended.code == 0, ended.stderr
    assert "12 rows of 10,000 files, in 12 units" in ended.stderr
    assert output_table(desk.output()).column("id").to_pylist() == list(range(12))


@pytest.mark.parametrize(
    ("names", "named"),
    [((), "nothing"), (("_hidden.parquet",), "nothing"), (("notes.txt",), "notes.txt")],
    ids=["empty", "hidden", "others"],
)
def test_a_folder_without_a_file_to_read_is_named(desk: Desk, names: tuple[str, ...], named: str) -> None:
    folder = desk.folder / "nothing"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("x")
    ended = desk.run(desk.job(folder, GENERATE, backend=FAKE))
    assert ended.code == 2 and named in ended.stderr
    assert not desk.output().exists()


def test_an_empty_file_is_named_or_left_out_and_listed(desk: Desk) -> None:
    source = desk.write_rows({"id": [1], "text": ["a text"]}, "a.parquet")
    empty: Path = source / "b.parquet"
    empty.touch()
    refused = desk.run(desk.job(source, GENERATE, backend=FAKE))
    assert refused.code == 2 and f"{empty} (0 bytes): the file is empty" in refused.stderr
    ended = desk.run(desk.job(source, GENERATE, backend=FAKE, errors={"bad_files": "skip"}))
    assert ended.code == 3 and f"skipped: {empty}" in ended.stderr
    assert output_table(desk.output()).column("id").to_pylist() == [1]
