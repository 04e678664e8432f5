"""Jobs from end to end: Parquet in, Ray, GPT-J, Parquet out."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from unit.records.tables import same_columns

from integration.desk import GENERATE, GENERATED, MAX_NEW_TOKENS, Desk, articles
from integration.running import (
    CANARY,
    Outcome,
    output_table,
    run_report,
)
from integration.tiny_model import N_POSITIONS, TinyModel
from pipelines.config import load_job

pytestmark = pytest.mark.timeout(600)

LABELS = ["World", "Sports", "Business"]
CLASSIFY = {"kind": "classify", "prompt": "{{ text }}\nTopic:", "labels": LABELS}


def test_every_column_of_the_input_comes_out_as_it_was_and_in_its_order(
    generated: tuple[Desk, Outcome], source: Path
) -> None:
    desk, ended = generated
    assert ended.code == 0, ended.stderr
    before = pa.concat_tables([pq.read_table(file) for file in sorted(source.glob("*.parquet"))])
    after = output_table(desk.output())
    assert after.column_names == [*before.column_names, *GENERATED]
    kept = after.select(before.column_names)
    assert kept.num_rows == 115
    lineage = {key: value for key, value in kept.schema.metadata.items() if key != b"gptj_batch"}
    assert same_columns(kept.schema.with_metadata(lineage or None), before.schema)
    for name in before.column_names:
        assert kept.column(name).to_pylist() == before.column(name).to_pylist(), name


def test_greedy_text_is_what_the_dense_model_gives_row_by_row(generated: tuple[Desk, Outcome], tiny: TinyModel) -> None:
    desk, _ = generated
    rows = output_table(desk.output()).to_pylist()[::4]
    for row in rows:
        prompt = tiny.encode(row["text"])
        expected = tiny.greedy(prompt, MAX_NEW_TOKENS)
        assert row["generated_text"] == tiny.decode(expected)
        assert (row["num_prompt_tokens"], row["num_generated_tokens"]) == (len(prompt), len(expected))
        assert row["finish_reason"] == ("length" if len(expected) == MAX_NEW_TOKENS else "stop")
        assert row["error"] is None


def test_the_output_holds_parts_success_and_the_story_of_the_run(generated: tuple[Desk, Outcome]) -> None:
    desk, ended = generated
    names = {path.relative_to(desk.output()).as_posix() for path in desk.output().rglob("*") if path.is_file()}
    private = {f"_gptj_batch/{name}" for name in ("config.yaml", "plan.json", "run.json", "report.html")}
    assert names == {"part-00000.parquet", "_SUCCESS"} | private
    assert json.loads((desk.output() / "_SUCCESS").read_text())["rows"] == 115
    assert "115 rows: 115 done, 0 failed" in ended.stdout
    assert load_job(desk.output() / "_gptj_batch" / "config.yaml") == load_job(desk.folder / "output.yaml")


def test_run_json_counts_what_the_rows_say(generated: tuple[Desk, Outcome], tiny: TinyModel) -> None:
    desk, _ = generated
    report, table = run_report(desk.output()), output_table(desk.output())
    assert (report["rows"], report["done"], report["failed"], report["errors"]) == (115, 115, 0, {})
    assert report["prompt_tokens_this_run"] == pc.sum(table.column("num_prompt_tokens")).as_py()
    assert report["generated_tokens_this_run"] == pc.sum(table.column("num_generated_tokens")).as_py()
    assert report["seconds"] > 0
    assert report["tokens_per_s"] > 0
    assert (report["model"], len(report["model_identity"])) == (str(tiny.folder), 64)
    assert report["task"]["prompt"] == GENERATE["prompt"]
    assert report["backend"]["kind"] == "native"
    assert report["backend"]["dtype"] == "float32"
    assert {"gptj-batch", "python", "torch", "ray", "pyarrow"} <= report["versions"].keys()


def test_the_lineage_stands_in_the_metadata_of_every_part(generated: tuple[Desk, Outcome]) -> None:
    desk, _ = generated
    report = run_report(desk.output())
    for part in desk.output().glob("part-*.parquet"):
        metadata = pq.read_schema(part).metadata
        lineage = json.loads(metadata[b"gptj_batch"])
        assert lineage["job"] == "test-job"
        assert lineage["model_identity"] == report["model_identity"]
        for name in ("task", "prompt_sha256", "versions"):
            assert lineage[name] == report[name]
        assert lineage["backend"]["kind"] == "native"
        assert metadata[b"who"] == b"tests", "the input's own metadata"


@pytest.mark.without_ray
def test_a_file_alone_in_one_unit_gives_what_it_gives_among_others(
    generated: tuple[Desk, Outcome], desk: Desk, source: Path
) -> None:
    together = output_table(generated[0].output()).slice(40, 25)
    assert desk.run(desk.job(source / "c.parquet", GENERATE)).code == 0
    alone = output_table(desk.output())
    for name in GENERATED:
        assert alone.column(name).to_pylist() == together.column(name).to_pylist(), name


@pytest.fixture(scope="module")
def labelled(new_desk: Callable[[str], Desk], source: Path) -> tuple[Desk, Outcome]:
    desk = new_desk("labelled")
    job = desk.job(source, CLASSIFY, input={"columns": ["text", "id"]}, output={"prefix": "gptj_"})
    return desk, desk.run(job)


def test_probabilities_are_those_of_the_dense_model(labelled: tuple[Desk, Outcome], tiny: TinyModel) -> None:
    desk, ended = labelled
    assert ended.code == 0, ended.stderr
    for row in output_table(desk.output()).to_pylist()[::3]:
        expected = tiny.label_probabilities(f"{row['text']}\nTopic:", [f" {label}" for label in LABELS])
        scores = dict(row["gptj_label_scores"])
        assert list(scores) == LABELS
        assert list(scores.values()) == pytest.approx(expected, abs=1e-5)
        assert row["gptj_label"] == max(scores, key=scores.__getitem__)
        assert row["gptj_label_score"] == max(scores.values())


def test_only_the_columns_asked_for_come_out_behind_the_prefix(labelled: tuple[Desk, Outcome]) -> None:
    desk, _ = labelled
    added = [f"gptj_{name}" for name in ("label", "label_score", "label_scores", "error")]
    assert output_table(desk.output()).column_names == ["text", "id", *added]


@pytest.mark.without_ray
def test_the_first_row_alone_is_labelled_as_in_company(
    labelled: tuple[Desk, Outcome], desk: Desk, source: Path
) -> None:
    (in_company,) = output_table(labelled[0].output()).slice(0, 1).to_pylist()
    assert desk.run(desk.job(source, CLASSIFY), "--limit", "1").code == 0
    (alone,) = output_table(desk.output()).to_pylist()
    assert alone["text"] == in_company["text"]
    assert alone["label"] == in_company["gptj_label"]
    scores = [score for _, score in alone["label_scores"]]
    assert scores == pytest.approx([score for _, score in in_company["gptj_label_scores"]], abs=1e-6)


@pytest.mark.without_ray
def test_labels_with_texts_of_their_own_are_averaged_and_long_prompts_cut_on_the_right(
    desk: Desk, tiny: TinyModel
) -> None:
    texts = {"yes": " The team won the match", "no": " Shares", "long": "."}
    room = N_POSITIONS - max(len(tiny.encode(text)) for text in texts.values())
    prompts = [f"{CANARY} short", "!" * 30 + "~" * (room - 30), "!" * 30 + "~" * room, "!" * 30 + "~" * 500]
    source = desk.write_rows({"text": prompts})
    task = {"kind": "classify", "prompt": "{{ text }}", "labels": texts, "likelihood": "mean", "truncate": "right"}
    assert desk.run(desk.job(source, task)).code == 0
    for row in output_table(desk.output()).to_pylist():
        expected = tiny.label_probabilities(row["text"][:room], list(texts.values()), mean=True)
        assert dict(row["label_scores"]) == pytest.approx(dict(zip(texts, expected, strict=True)), abs=1e-5)
    assert run_report(desk.output())["truncated_this_run"] == 2


def test_an_input_without_rows_gives_an_output_with_columns(desk: Desk) -> None:
    pq.write_table(articles(0, 0), desk.folder / "empty.parquet")
    ended = desk.run(desk.job(desk.folder / "empty.parquet", GENERATE))
    assert ended.code == 0, ended.stderr
    table = output_table(desk.output())
    assert (table.num_rows, table.column_names) == (0, [*articles(0, 0).column_names, *GENERATED])
    assert (desk.output() / "_SUCCESS").exists()
    assert run_report(desk.output())["rows"] == 0


def test_a_run_needs_no_whole_cpu_beside_its_replica(desk: Desk, source: Path) -> None:
    job = desk.job(source, GENERATE, replicas={"cpus_each": 1.5}, backend={"kind": "fake"})
    ended = desk.run(job, "--limit", "10")
    assert (ended.code, output_table(desk.output()).num_rows) == (0, 10), ended.stderr


@pytest.mark.without_ray
def test_a_limit_takes_the_first_rows(desk: Desk, source: Path) -> None:
    job = desk.job(source, GENERATE, input={"columns": ["id", "text"]}, backend={"kind": "fake"})
    assert desk.run(job, "--limit", "70").code == 0
    assert output_table(desk.output()).column("id").to_pylist() == list(range(70))


@pytest.mark.without_ray
def test_a_column_that_the_task_adds_and_the_input_has_is_an_error(desk: Desk) -> None:
    source = desk.write_rows({"text": ["a"], "error": ["mine"]})
    ended = desk.run(desk.job(source, GENERATE))
    assert ended.code == 2
    assert '"error"' in ended.stderr
    assert "output.prefix" in ended.stderr
    assert not desk.output().exists()
