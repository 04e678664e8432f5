"""The output's formats and partitions, through the whole pipeline."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from integration.desk import Desk
from integration.running import output_table, run_report

pytestmark = [pytest.mark.timeout(600), pytest.mark.without_ray]

CLASSIFY = {"kind": "classify", "prompt": "{{ text }}\nTopic:", "labels": ["World", "Sports", "a/b ü"]}
FAKE = {"kind": "fake"}


@pytest.fixture(scope="module")
def labelled(new_desk: Callable[[str], Desk], source: Path) -> tuple[Desk, pa.Table]:
    desk = new_desk("labelled")
    ended = desk.run(desk.job(source, CLASSIFY, backend=FAKE))
    assert ended.code == 0, ended.stderr
    return desk, output_table(desk.output())


def same_page(desk: Desk, name: str) -> bool:
    """Tell whether the report's page shows the labels as that of the Parquet output does."""
    pages = [(desk.output(each) / "_gptj_batch" / "report.html").read_text() for each in ("output", name)]
    sections = [page[page.index("<h2>label</h2>") :] for page in pages]
    return sections[0] == sections[1]


def test_arrow_files_have_the_same_rows_types_and_lineage(labelled: tuple[Desk, pa.Table], source: Path) -> None:
    desk, parquet = labelled
    job = desk.job(source, CLASSIFY, "arrow", backend=FAKE, output={"format": "arrow", "compression": "lz4"})
    assert desk.run(job).code == 0
    (part,) = desk.output("arrow").glob("part-*")
    table = pa.ipc.open_file(part).read_all()
    assert part.name == "part-00000.arrow" and (desk.output("arrow") / "_SUCCESS").exists()
    assert table.equals(parquet)
    assert json.loads(table.schema.metadata[b"gptj_batch"])["job"] == "test-job"
    assert same_page(desk, "arrow") and run_report(desk.output("arrow"))["done"] == 115


def test_json_lines_have_the_same_rows(labelled: tuple[Desk, pa.Table], source: Path) -> None:
    desk, parquet = labelled
    assert desk.run(desk.job(source, CLASSIFY, "jsonl", backend=FAKE, output={"format": "jsonl"})).code == 0
    (part,) = desk.output("jsonl").glob("part-*")
    rows = [json.loads(line) for line in part.read_text("utf-8").splitlines()]
    assert part.name == "part-00000.jsonl" and list(rows[0]) == parquet.column_names
    for name in ("id", "text", "label", "label_score", "error", "list", "bool"):
        assert [row[name] for row in rows] == parquet.column(name).to_pylist()
    assert [row["label_scores"] for row in rows] == [dict(row) for row in parquet.column("label_scores").to_pylist()]
    assert same_page(desk, "jsonl") and run_report(desk.output("jsonl"))["done"] == 115


@pytest.mark.on_ray
def test_partitions_by_an_added_column_and_one_of_the_input(labelled: tuple[Desk, pa.Table], source: Path) -> None:
    desk, parquet = labelled
    by = {"partition_by": ["bool", "label"]}
    ended = desk.run(desk.job(source, CLASSIFY, "folders", backend=FAKE, output=by))
    assert ended.code == 0, ended.stderr
    output = desk.output("folders")
    dataset = ds.dataset(output, partitioning="hive")
    assert set(dataset.schema.names) == set(parquet.column_names)
    table = dataset.to_table(["id", "label", "label_score", "bool"]).sort_by("id")
    assert table.select(["id", "label_score"]).equals(parquet.select(["id", "label_score"]))
    assert table.column("label").to_pylist() == parquet.column("label").to_pylist()
    assert (output / "bool=__HIVE_DEFAULT_PARTITION__").is_dir() and not list(output.glob("part-*"))
    assert same_page(desk, "folders") and run_report(output)["done"] == 115


def test_a_form_that_does_not_work_out_is_changed_without_computing_again(desk: Desk, source: Path) -> None:
    job = desk.job(source, CLASSIFY, backend=FAKE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptj_batch.records.partitioned.MAX_PARTITIONS", 50)
        ended = desk.run(job, "output.partition_by=[id]")
    assert ended.code == 1 and 'output.partition_by: "id" has more than 50 values' in ended.stderr
    ended = desk.run(job, "output.partition_by=[label]", "output.format=jsonl")
    assert ended.code == 0 and run_report(desk.output())["rows_this_run"] == 0
    assert len(list(desk.output().glob("label=*/part-00000.jsonl"))) in (2, 3)
    refused = desk.run(job)
    assert refused.code == 2 and 'output.format: "jsonl" -> "parquet"' in refused.stderr


def test_a_complete_output_of_any_form_reports_again(labelled: tuple[Desk, pa.Table], source: Path) -> None:
    desk, _ = labelled
    settings = {"format": "jsonl", "compression": "gzip", "partition_by": ["label"]}
    job = desk.job(source, CLASSIFY, "again", backend=FAKE, output=settings)
    assert desk.run(job).code == 0
    page = desk.output("again") / "_gptj_batch" / "report.html"
    before = page.read_text()
    page.unlink()
    ended = desk.run(job)
    assert ended.code == 0 and "Nothing to do" in ended.stderr and page.read_text() == before
    assert same_page(desk, "again")
    (desk.output("again") / "_gptj_batch" / "run.json").unlink()
    assert desk.run(job).code == 0 and run_report(desk.output("again"))["done"] == 115


@pytest.mark.parametrize("by", ["labl", "label_score", "label_scores"])
def test_what_cannot_be_partitioned_by_is_refused_before_anything_runs(desk: Desk, source: Path, by: str) -> None:
    ended = desk.run(desk.job(source, CLASSIFY, backend=FAKE), f"output.partition_by=[{by}]")
    assert ended.code == 2 and f'"{by}"' in ended.stderr and not desk.output().exists()
