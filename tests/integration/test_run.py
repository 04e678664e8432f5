"""Jobs from end to end: Parquet in, Ray, GPT-J, Parquet out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from unit.records.tables import every_type, same_columns

import pipelines.prepare
from gptj_batch.errors import OutputError
from integration.clusters import RunningCluster, connect
from integration.running import (
    CANARY,
    Outcome,
    environment,
    outcome,
    output_table,
    run_here,
    run_report,
    start_command,
    write_job,
)
from integration.tiny_model import N_POSITIONS, TinyModel
from pipelines.config import load_job

pytestmark = pytest.mark.timeout(600)

GENERATE = {"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 6}
LABELS = ["World", "Sports", "Business"]
CLASSIFY = {"kind": "classify", "prompt": "{{ text }}\nTopic:", "labels": LABELS}
GENERATED = ["generated_text", "finish_reason", "num_prompt_tokens", "num_generated_tokens", "error"]
ROOM = N_POSITIONS - GENERATE["max_new_tokens"]


@dataclass(frozen=True)
class Desk:
    """A folder for one test's files, with the model and the cluster that its jobs use."""

    folder: Path
    tiny: TinyModel
    cluster: RunningCluster

    def job(self, source: Path, task: dict[str, Any], name: str = "output", **blocks: Any) -> Path:
        model = {"path": str(self.tiny.folder), "dtype": "float32"}
        settings: dict[str, Any] = {"input": {}, "output": {}, "model": model, **blocks}
        settings["input"] = {"path": str(source), **settings["input"]}
        settings["output"] = {"path": str(self.folder / name), **settings["output"]}
        return write_job(self.folder / f"{name}.yaml", task=task, **settings)

    def run(self, job: Path, *arguments: str) -> Outcome:
        connect(self.cluster)
        return run_here(job, *arguments)

    def output(self, name: str = "output") -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def desk_of(
    tmp_path_factory: pytest.TempPathFactory, tiny: TinyModel, one_node: RunningCluster
) -> Callable[[str], Desk]:
    return lambda name: Desk(tmp_path_factory.mktemp(name), tiny, one_node)


@pytest.fixture
def desk(desk_of: Callable[[str], Desk]) -> Desk:
    return desk_of("desk")


def articles(start: int, stop: int) -> pa.Table:
    """Rows with a text, a number, and a column of every type; each text is another one."""
    texts = [f"{CANARY} {row}: The team won {row % 7} matches in the market." for row in range(start, stop)]
    rows = pa.table({"id": pa.array(range(start, stop), pa.int64()), "text": pa.array(texts, pa.string())})
    types = pa.concat_tables([every_type()] * (stop // 3 + 1)).slice(start, stop - start)
    fields = [*rows.schema, *types.schema]
    return pa.table([*rows.columns, *types.columns], schema=pa.schema(fields, metadata=types.schema.metadata))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of 40, 0, 25 and 50 rows: five units and a file that has none."""
    folder = tmp_path_factory.mktemp("source")
    for name, start, stop in (("a", 0, 40), ("b", 40, 40), ("c", 40, 65), ("d", 65, 115)):
        pq.write_table(articles(start, stop), folder / f"{name}.parquet")
    return folder


def texts_of(table: pa.Table) -> list[str]:
    values: list[str] = table.column("text").to_pylist()
    return values


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(desk_of: Callable[[str], Desk], source: Path) -> tuple[Desk, Outcome]:
    desk = desk_of("generated")
    return desk, desk.run(desk.job(source, GENERATE))


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
        expected = tiny.greedy(prompt, GENERATE["max_new_tokens"])
        assert row["generated_text"] == tiny.decode(expected)
        assert (row["num_prompt_tokens"], row["num_generated_tokens"]) == (len(prompt), len(expected))
        assert row["finish_reason"] == ("length" if len(expected) == GENERATE["max_new_tokens"] else "stop")
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
        assert lineage["task"] == report["task"]
        assert lineage["backend"]["kind"] == "native"
        assert metadata[b"who"] == b"tests", "the input's own metadata"


def test_a_file_alone_in_one_unit_gives_what_it_gives_among_others(
    generated: tuple[Desk, Outcome], desk: Desk, source: Path
) -> None:
    together = output_table(generated[0].output()).slice(40, 25)
    assert desk.run(desk.job(source / "c.parquet", GENERATE)).code == 0
    alone = output_table(desk.output())
    for name in GENERATED:
        assert alone.column(name).to_pylist() == together.column(name).to_pylist(), name


# --- classify ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(desk_of: Callable[[str], Desk], source: Path) -> tuple[Desk, Outcome]:
    desk = desk_of("labelled")
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


def test_labels_with_texts_of_their_own_are_averaged_and_long_prompts_cut_on_the_right(
    desk: Desk, tiny: TinyModel
) -> None:
    texts = {"yes": " The team won the match", "no": " Shares", "long": "."}
    room = N_POSITIONS - max(len(tiny.encode(text)) for text in texts.values())
    prompts = [f"{CANARY} short", "!" * 30 + "~" * (room - 30), "!" * 30 + "~" * room, "!" * 30 + "~" * 500]
    source = write_rows(desk, {"text": prompts})
    task = {"kind": "classify", "prompt": "{{ text }}", "labels": texts, "likelihood": "mean", "truncate": "right"}
    assert desk.run(desk.job(source, task)).code == 0
    for row in output_table(desk.output()).to_pylist():
        expected = tiny.label_probabilities(row["text"][:room], list(texts.values()), mean=True)
        assert dict(row["label_scores"]) == pytest.approx(dict(zip(texts, expected, strict=True)), abs=1e-5)
    assert run_report(desk.output())["truncated_this_run"] == 2


# --- rows that cannot be done -----------------------------------------------------------------------------------------


def write_rows(desk: Desk, columns: dict[str, Any], name: str = "rows.parquet") -> Path:
    folder = desk.folder / "input"
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return folder


def text_with_bad_bytes(values: list[bytes | None]) -> pa.Array:
    """Return a text column that nobody checked."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_each_bad_row_has_its_reason_and_the_others_are_done(desk: Desk, tiny: TinyModel) -> None:
    texts: list[bytes | None] = [
        f"{CANARY} good".encode(), None, b"", b"   ", CANARY.encode() + b" \xff\xfe",
        b"~" * ROOM, b"~" * (ROOM + 1), b"~" * 5000, "also good: é 😀".encode(),
    ]  # fmt: skip
    write_rows(desk, {"text": text_with_bad_bytes(texts)}, "a.parquet")
    # a whole unit of rows that cannot be done, and one behind it that can
    write_rows(desk, {"text": pa.nulls(5, pa.string())}, "b.parquet")
    source = write_rows(desk, {"text": pa.array([f"{CANARY} last"])}, "c.parquet")
    ended = desk.run(desk.job(source, GENERATE, errors={"max_failed_rows": 10}))
    assert ended.code == 0, ended.stderr
    table = output_table(desk.output())
    assert table.column("text").cast(pa.binary()).to_pylist() == [*texts, *[None] * 5, f"{CANARY} last".encode()]
    rows = table.drop_columns(["text"]).to_pylist()
    reasons = {
        1: 'column "text" is null',
        2: "prompt is empty",
        4: 'column "text" holds invalid UTF-8 at byte 10',
        6: f"the prompt has {ROOM + 1} tokens and {ROOM} fit",
        7: f"the prompt has 5000 tokens and {ROOM} fit",
        **dict.fromkeys(range(9, 14), 'column "text" is null'),
    }
    for place, row in enumerate(rows):
        if place in reasons:
            assert reasons[place] in row["error"]
            assert [row[name] for name in GENERATED[:-1]] == [None] * 4
        else:
            assert row["error"] is None
            prompt = tiny.encode((texts + [None] * 5 + [f"{CANARY} last".encode()])[place].decode())
            assert row["num_prompt_tokens"] == len(prompt)
            assert row["generated_text"] == tiny.decode(tiny.greedy(prompt, GENERATE["max_new_tokens"]))
    report = run_report(desk.output())
    assert (report["rows"], report["done"], report["failed"]) == (15, 5, 10)
    assert sum(report["errors"].values()) == 10


def test_a_prompt_cut_on_the_left_keeps_its_end_and_the_count_of_tokens_is_true(desk: Desk, tiny: TinyModel) -> None:
    texts = ["!" * 9 + "~" * (ROOM - 9), "!" * 9 + "~" * (ROOM - 8), "!" * 900 + "~" * 9]
    job = desk.job(write_rows(desk, {"text": texts}), {**GENERATE, "truncate": "left"})
    assert desk.run(job).code == 0
    for row in output_table(desk.output()).to_pylist():
        kept = tiny.encode(row["text"][-ROOM:])
        assert row["num_prompt_tokens"] == len(kept) == ROOM
        assert row["generated_text"] == tiny.decode(tiny.greedy(kept, GENERATE["max_new_tokens"]))
    assert run_report(desk.output())["truncated_this_run"] == 2


def test_a_run_whose_rows_all_fail_is_complete_and_ends_with_3(desk: Desk) -> None:
    source = write_rows(desk, {"text": pa.array([f"{CANARY}".encode()] * 50, pa.binary())})
    ended = desk.run(desk.job(source, GENERATE, backend={"kind": "fake"}))
    assert ended.code == 3
    assert "errors.max_failed_rows" in ended.stdout
    table = output_table(desk.output())
    assert (
        table.column("error").to_pylist()
        == ['column "text" is binary, not text; convert the column to text first'] * 50
    )
    assert (desk.output() / "_SUCCESS").exists()
    # A rerun that allows more failures has nothing to do, and is good.
    again = desk.run(desk.folder / "output.yaml", "errors.max_failed_rows=50")
    assert "Nothing to do" in again.stderr
    assert again.code == 0


# --- the shape of the input and the output ----------------------------------------------------------------------------


def test_an_input_without_rows_gives_an_output_with_columns(desk: Desk) -> None:
    pq.write_table(articles(0, 0), desk.folder / "empty.parquet")
    ended = desk.run(desk.job(desk.folder / "empty.parquet", GENERATE))
    assert ended.code == 0, ended.stderr
    table = output_table(desk.output())
    assert (table.num_rows, table.column_names) == (0, [*articles(0, 0).column_names, *GENERATED])
    assert (desk.output() / "_SUCCESS").exists()
    assert run_report(desk.output())["rows"] == 0


def test_a_limit_takes_the_first_rows(desk: Desk, source: Path) -> None:
    job = desk.job(source, GENERATE, input={"columns": ["id", "text"]}, backend={"kind": "fake"})
    assert desk.run(job, "--limit", "70").code == 0
    assert output_table(desk.output()).column("id").to_pylist() == list(range(70))


def test_a_column_that_the_task_adds_and_the_input_has_is_an_error(desk: Desk) -> None:
    source = write_rows(desk, {"text": ["a"], "error": ["mine"]})
    ended = desk.run(desk.job(source, GENERATE))
    assert ended.code == 2
    assert '"error"' in ended.stderr
    assert "output.prefix" in ended.stderr
    assert not desk.output().exists()


# --- outputs that are there already -----------------------------------------------------------------------------------

SAMPLED = {**GENERATE, "temperature": 1.0, "top_k": 50, "seed": 7}


@pytest.fixture(scope="module")
def sampled(desk_of: Callable[[str], Desk], source: Path) -> pa.Table:
    desk = desk_of("sampled")
    ended = desk.run(desk.job(source, SAMPLED, input={"columns": ["id", "text"]}))
    assert ended.code == 0, ended.stderr
    return output_table(desk.output())


@pytest.fixture
def interrupted(desk: Desk, source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A run over one file in small units that ended before it was published, three of its units lost."""

    def crash(*arguments: Any) -> None:
        raise OutputError("as if the machine had gone")

    monkeypatch.setattr(pipelines.prepare, "unit_rows", lambda num_rows: 7)
    job = desk.job(source / "d.parquet", SAMPLED, input={"columns": ["id", "text"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.run.publish", crash)
        assert desk.run(job).code == 1
    units = sorted((desk.output() / "_gptj_batch" / "units").iterdir())
    assert len(units) == 8
    for unit in units[1:4]:
        unit.unlink()
    yield desk


def test_an_interrupted_run_goes_on_and_gives_what_an_undisturbed_one_gives(
    interrupted: Desk, sampled: pa.Table
) -> None:
    output = interrupted.output()
    assert not list(output.glob("part-*"))
    assert not (output / "_SUCCESS").exists()
    ended = interrupted.run(interrupted.folder / "output.yaml")
    assert ended.code == 0, ended.stderr
    assert "21 rows of 1 files (29 were done before), in 3 units" in ended.stderr
    assert run_report(output)["rows_this_run"] == 21
    # in other units, of a file alone, partly in another run: the same rows
    assert output_table(output).to_pylist() == sampled.slice(65, 50).to_pylist()


def test_sampling_depends_on_the_seed(interrupted: Desk, sampled: pa.Table) -> None:
    # On the way also: overwriting, which begins anew though another configuration made what is there.
    refused = interrupted.run(interrupted.folder / "output.yaml", "task.seed=8")
    assert refused.code == 2
    assert "task.seed: 7 -> 8" in refused.stderr
    assert "output.on_exists=overwrite" in refused.stderr
    ended = interrupted.run(interrupted.folder / "output.yaml", "task.seed=8", "output.on_exists=overwrite")
    assert ended.code == 0, ended.stderr
    assert run_report(interrupted.output())["rows_this_run"] == 50
    texts = output_table(interrupted.output()).column("generated_text").to_pylist()
    assert texts != sampled.slice(65, 50).column("generated_text").to_pylist()


def test_rows_with_a_key_are_sampled_alike_in_any_order(desk: Desk, source: Path) -> None:
    rows = pq.read_table(source / "c.parquet", columns=["id", "text"])
    by_id = []
    for name, table in (("forth", rows), ("back", rows.take(list(range(rows.num_rows - 1, -1, -1))))):
        pq.write_table(table, desk.folder / f"{name}.parquet")
        job = desk.job(desk.folder / f"{name}.parquet", SAMPLED, name, input={"key": "id"})
        assert desk.run(job).code == 0
        by_id.append(output_table(desk.output(name)).sort_by("id").to_pylist())
    assert by_id[0] == by_id[1]


def test_an_output_that_is_there_is_left_alone_if_that_is_asked_for(
    generated: tuple[Desk, Outcome], source: Path
) -> None:
    desk, _ = generated
    before = output_table(desk.output())
    ended = desk.run(desk.folder / "output.yaml", "output.on_exists=fail")
    assert ended.code == 2
    assert "is not empty, and output.on_exists is fail" in ended.stderr
    assert output_table(desk.output()).equals(before)


def test_a_finished_run_does_nothing_again_and_starts_no_ray(generated: tuple[Desk, Outcome], tmp_path: Path) -> None:
    desk, _ = generated
    parts = {part: part.stat().st_mtime_ns for part in desk.output().glob("part-*")}
    # At this address there is no Ray: to ask for it would fail.
    arguments = ["run", str(desk.folder / "output.yaml"), "--address", "127.0.0.1:1"]
    ended = outcome(start_command(arguments, environment(tmp_path), tmp_path))
    assert ended.code == 0, ended.stderr
    assert "Nothing to do" in ended.stderr
    assert "115 rows: 115 done, 0 failed" in ended.stdout
    assert {part: part.stat().st_mtime_ns for part in desk.output().glob("part-*")} == parts


def test_no_text_of_a_record_is_in_any_log_message_or_report(
    generated: tuple[Desk, Outcome], labelled: tuple[Desk, Outcome], desk: Desk, tmp_path: Path
) -> None:
    # A command of its own, so that what native code prints is seen too: rows that fail in every stage they can.
    texts: list[bytes | None] = [f"{CANARY} {'~' * 100}".encode(), CANARY.encode() + b"\xff", None, CANARY.encode()]
    source = write_rows(desk, {"text": text_with_bad_bytes(texts), "number": [1, 0, 1, 0]})
    job = desk.job(source, {**GENERATE, "prompt": "{{ text }} {{ 1 / number }}"})
    arguments = ["run", str(job), "--address", desk.cluster.address]
    ended = outcome(start_command(arguments, environment(tmp_path, RAY_AUTH_MODE="disabled"), tmp_path))
    assert ended.code == 3, ended.stderr
    assert run_report(desk.output())["failed"] == 4
    said = [
        generated[1].stdout,
        generated[1].stderr,
        labelled[1].stdout,
        labelled[1].stderr,
        ended.stdout,
        ended.stderr,
    ]
    assert not [text for text in said if CANARY in text]
    logs = [file for file in desk.cluster.folder.rglob("*") if file.is_file() and "logs" in file.parts]
    reports = [file for one in (desk, generated[0], labelled[0]) for file in (one.output() / "_gptj_batch").iterdir()]
    assert len(logs) > 10
    assert not [file for file in (*logs, *reports) if CANARY.encode() in file.read_bytes()]
