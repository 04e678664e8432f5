import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.errors import CheckpointError, ConfigError, InputError
from pipelines.config import Job
from pipelines.prepare import MAX_UNIT_ROWS, MAX_UNITS, MIN_UNIT_ROWS, prepare, unit_rows

MakeJob = Callable[..., Job]


@pytest.fixture
def own_model(model_folder: Path, tmp_path: Path) -> Path:
    """A model's folder that the test may write into."""
    return Path(shutil.copytree(model_folder, tmp_path / "own-model"))


def change_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


# What is prepared


def test_a_run_knows_its_rows_units_and_model(make_job: MakeJob, model_folder: Path) -> None:
    run = prepare(make_job())
    assert (run.plan.num_rows, run.plan.num_units) == (100, 4)
    assert (run.model.n_positions, run.model_path) == (64, str(model_folder))
    assert run.columns is None and run.error_column == "error"


def test_a_limit_cuts_the_rows(make_job: MakeJob) -> None:
    run = prepare(make_job(input={"limit": 33}))
    assert (run.plan.num_rows, run.plan.num_units) == (33, 2)
    assert prepare(make_job(input={"limit": 1000})).plan.num_rows == 100


def test_the_prefix_stands_before_the_error_too(make_job: MakeJob) -> None:
    assert prepare(make_job(output={"prefix": "g_"})).error_column == "g_error"


def test_workers_find_a_model_that_was_named_from_here(
    make_job: MakeJob, own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_model.parent)
    assert prepare(make_job(model={"path": "own-model"})).model_path == str(own_model)
    monkeypatch.setenv("HOME", str(own_model.parent))
    assert prepare(make_job(model={"path": "~/own-model"})).model_path == str(own_model)


def test_nothing_is_written_by_preparing(make_job: MakeJob, tmp_path: Path) -> None:
    prepare(make_job())
    assert not (tmp_path / "out").exists()


# Columns


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"task": {"prompt": "{{ txt }}"}}, r'task\.prompt: the input has no column "txt"\. Did you mean "text"\?'),
        ({"input": {"columns": ["id"]}}, r'task\.prompt: the input has no column "text"'),
        ({"input": {"columns": ["text", "ids"]}}, r'input\.columns: the input has no column "ids"; did you mean "id"'),
        ({"input": {"columns": []}}, r"input\.columns: the list is empty"),
        ({"input": {"key": "ids"}}, r'input\.key: the input has no column "ids"; it has id, text'),
        ({"input": {"key": "id", "columns": ["text"]}}, r'input\.key: the input has no column "id"; it has text'),
        ({"task": {"prompt": "{{ text"}}, r"task\.prompt: line 1"),
    ],
)
def test_a_column_that_is_not_there_is_named(make_job: MakeJob, blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(make_job(**blocks))


def rewrite(records: Path, **columns: Any) -> None:
    pq.write_table(
        pa.table({"text": ["a"], **{name: pa.array(values) for name, values in columns.items()}}), records / "a.parquet"
    )


@pytest.mark.parametrize("name", ["generated_text", "error", "num_prompt_tokens"])
def test_an_added_column_must_not_be_there_already(make_job: MakeJob, records: Path, name: str) -> None:
    rewrite(records, **{name: ["x"]})
    with pytest.raises(ConfigError, match=rf'output\.prefix: the task adds "{name}", and the input already has'):
        prepare(make_job())
    assert prepare(make_job(output={"prefix": "g_"}))
    assert prepare(make_job(input={"columns": ["text"]}))


def test_columns_of_the_stages_must_not_be_there_already(make_job: MakeJob, records: Path) -> None:
    rewrite(records, __gptj_batch_key=["x"])
    with pytest.raises(ConfigError, match=r'input\.columns: "__gptj_batch_key": columns between the stages begin with'):
        prepare(make_job())
    assert prepare(make_job(input={"columns": ["text"]}))


def test_a_column_that_parquet_cannot_hold_is_named(make_job: MakeJob, tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ConfigError, match='Parquet cannot hold these columns: "span"'):
        prepare(make_job(input={"path": str(tmp_path / "a.arrow")}))


# Files


def test_no_file_at_all_is_an_input_error(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'input\.path: nothing matches ".*none/\*\.parquet"'):
        prepare(make_job(input={"path": f"{tmp_path}/none/*.parquet"}))


def test_a_bad_file_stops_the_run_or_is_left_out_and_remembered(make_job: MakeJob, records: Path) -> None:
    (records / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"1 of 2 files cannot be read: .*b\.parquet"):
        prepare(make_job())
    run = prepare(make_job(errors={"bad_files": "skip"}))
    assert run.plan.num_rows == 100 and [Path(file.path).name for file in run.inputs.skipped] == ["b.parquet"]


def test_several_paths_are_read_as_one_input(make_job: MakeJob, records: Path, tmp_path: Path) -> None:
    shutil.copy(records / "a.parquet", tmp_path / "b.parquet")
    assert prepare(make_job(input={"path": [str(records), str(tmp_path / "b.parquet")]})).plan.num_rows == 200


def test_an_input_without_rows_can_be_prepared(make_job: MakeJob, records: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), records / "a.parquet")
    run = prepare(make_job())
    assert (run.plan.num_rows, run.plan.num_units) == (0, 1)


# The model


def test_a_backend_that_cannot_run_the_job_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype: int8 is the native engine's own"):
        prepare(make_job(backend={"kind": "vllm"}, model={"path": "demo", "dtype": "int8"}))


def test_what_vllm_is_told_beside_our_settings_decides_the_output(make_job: MakeJob) -> None:
    plain, told = (
        make_job(backend={"kind": "auto", "engine_kwargs": given}) for given in ({}, {"quantization": "fp8"})
    )
    assert prepare(plain).fingerprint()["backend"] == {"kind": "auto"}
    assert prepare(told).fingerprint()["backend"] == {"kind": "auto", "engine_kwargs": {"quantization": "fp8"}}


def test_a_model_that_is_not_there_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a hub name"):
        prepare(make_job(model={"path": str(tmp_path / "none")}))
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read \(FileNotFoundError\)"):
        prepare(make_job(model={"path": str(tmp_path)}))


@pytest.mark.parametrize("architecture", ["GPTJForSequenceClassification", "GPTJForQuestionAnswering", "GPTJModel"])
def test_a_checkpoint_with_another_head_is_refused(make_job: MakeJob, own_model: Path, architecture: str) -> None:
    change_config(own_model, architectures=[architecture])
    for backend in ("native", "auto"):
        with pytest.raises(
            CheckpointError, match=rf"holds a {architecture}; task\.kind generate needs a GPTJForCausalLM"
        ):
            prepare(make_job(model={"path": str(own_model)}, backend={"kind": backend}))
    assert prepare(make_job(model={"path": str(own_model)}, backend={"kind": "fake"})), "the fake reads no weights"


CLASSIFY_HEAD = {"kind": "classify", "method": "head", "text": "{{ text }}"}
EXTRACT = {"kind": "extract", "question": "Who?", "context": "{{ text }}", "max_question_tokens": 20}


@pytest.mark.parametrize(
    ("task", "needed"),
    [
        (CLASSIFY_HEAD, r"task\.kind classify with method head needs a GPTJForSequenceClassification"),
        (EXTRACT, r"task\.kind extract with method head needs a GPTJForQuestionAnswering"),
    ],
)
def test_a_head_is_not_found_in_a_language_model(
    make_job: MakeJob, own_model: Path, task: dict[str, Any], needed: str
) -> None:
    job = make_job(task=task, model={"path": str(own_model)}, backend={"kind": "native"})
    with pytest.raises(CheckpointError, match=needed):
        prepare(job)
    change_config(own_model, architectures=[needed.split()[-1]])
    assert prepare(job)


def test_the_columns_of_a_classifier_are_those_of_its_checkpoint(make_job: MakeJob, own_model: Path) -> None:
    job = make_job(task=CLASSIFY_HEAD, model={"path": str(own_model)})
    assert prepare(job).task.adds.names == ["label", "label_score", "label_scores"]
    change_config(own_model, problem_type="regression", id2label={"0": "stars"})
    assert prepare(job).task.adds.names == ["value"]
    change_config(own_model, id2label={"0": "a", "1": "b"})
    with pytest.raises(CheckpointError, match="a regression of 2 values"):
        prepare(job)


SCORE, EMBED = ({"kind": kind, "text": "{{ text }}"} for kind in ("score", "embed"))


@pytest.mark.parametrize(
    "architecture", ["GPTJModel", "GPTJForCausalLM", "GPTJForSequenceClassification", "GPTJForQuestionAnswering"]
)
def test_any_gptj_gives_embeddings_as_wide_as_itself(make_job: MakeJob, own_model: Path, architecture: str) -> None:
    change_config(own_model, architectures=[architecture], n_embd=24)
    run = prepare(make_job(task=EMBED, model={"path": str(own_model)}, backend={"kind": "native"}))
    assert run.task.adds.field("embedding").type == pa.list_(pa.float32(), 24)


def test_other_classes_give_neither_embeddings_nor_scores(make_job: MakeJob, own_model: Path) -> None:
    change_config(own_model, architectures=["GPTJForTokenClassification"])
    native = {"model": {"path": str(own_model)}, "backend": {"kind": "native"}}
    with pytest.raises(CheckpointError, match=r"task\.kind embed needs a GPTJForCausalLM or .* or a GPTJModel"):
        prepare(make_job(task=EMBED, **native))
    change_config(own_model, architectures=["GPTJModel"])
    with pytest.raises(CheckpointError, match=r"holds a GPTJModel; task\.kind score needs a GPTJForCausalLM"):
        prepare(make_job(task=SCORE, **native))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({**EMBED, "layer": 3}, r"task\.layer: must lie between -3 and 2, .* got 3"),
        ({**EMBED, "text": "{{ txt }}"}, r'task\.text: the input has no column "txt"'),
        ({**SCORE, "stride_tokens": 64}, r"task\.stride_tokens: must be below 64, .* got 64"),
        ({**SCORE, "context": "{{ txt }}"}, r'task\.context: the input has no column "txt"'),
    ],
)
def test_what_the_model_or_the_input_rules_out_is_found_before_the_run(
    make_job: MakeJob, task: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(make_job(task=task))


def test_a_question_must_leave_room_in_the_context(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match=r"task\.max_question_tokens: 64 leave no room.*context of 64"):
        prepare(make_job(task={**EXTRACT, "max_question_tokens": 64}))


def test_a_checkpoint_that_names_no_class_may_be_one(make_job: MakeJob, own_model: Path) -> None:
    change_config(own_model, architectures=None)
    assert prepare(make_job(model={"path": str(own_model)}, backend={"kind": "native"}))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(make_job: MakeJob, own_model: Path) -> None:
    change_config(own_model, vocab_size=299)
    with pytest.raises(CheckpointError, match="has 300 tokens and the model only 299"):
        prepare(make_job(model={"path": str(own_model)}))
    change_config(own_model, vocab_size=400)
    assert prepare(make_job(model={"path": str(own_model)})), "a vocabulary may be filled up"


def test_a_model_without_a_tokenizer_is_refused(make_job: MakeJob, own_model: Path) -> None:
    (own_model / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="there is no tokenizer in this folder"):
        prepare(make_job(model={"path": str(own_model)}))


@pytest.mark.parametrize(("tokens", "fits"), [(63, True), (64, False), (65, False)])
def test_a_token_of_the_prompt_must_fit_before_the_new_ones(make_job: MakeJob, tokens: int, fits: bool) -> None:
    job = make_job(task={"max_new_tokens": tokens})
    if fits:
        assert prepare(job)
    else:
        with pytest.raises(ConfigError, match=rf"task: {tokens} tokens behind the prompt .*context of 64"):
            prepare(job)


def test_a_label_must_fit_into_the_context(make_job: MakeJob) -> None:
    job = make_job(task={"kind": "classify", "prompt": "{{ text }}", "labels": ["a", "x" * 100]})
    with pytest.raises(ConfigError, match=r"the longest label.* leave no room"):
        prepare(job)


# Units


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (0, 32), (1, 32), (32 * 64, 32), (32 * 64 + 1, 33), (10_000, 157), (512 * 64, 512), (1_000_000, 512),
        (512 * 100_000, 512), (512 * 100_000 + 1, 513), (10**9, 10_000),
    ],
)  # fmt: skip
def test_units_are_small_for_short_jobs_and_never_too_many(rows: int, expected: int) -> None:
    assert unit_rows(rows) == expected


@given(st.integers(0, 10**12))
def test_there_are_never_more_units_than_the_planner_handles(rows: int) -> None:
    size = unit_rows(rows)
    assert size >= MIN_UNIT_ROWS and -(-rows // size) <= MAX_UNITS
    assert size <= MAX_UNIT_ROWS or rows > MAX_UNIT_ROWS * MAX_UNITS


# The fingerprint


@pytest.mark.parametrize(
    "blocks",
    [
        {"input": {"limit": 99}},
        {"input": {"columns": ["text"]}},
        {"input": {"key": "id"}},
        {"task": {"prompt": "{{ text }} "}},
        {"task": {"seed": 1}},
        {"task": {"max_new_tokens": 9}},
        {"model": {"dtype": "float32"}},
        {"backend": {"kind": "native"}},
        {"output": {"prefix": "g_"}},
    ],
    ids=str,
)
def test_what_changes_the_output_changes_the_fingerprint(make_job: MakeJob, blocks: dict[str, Any]) -> None:
    assert prepare(make_job()).fingerprint() != prepare(make_job(**blocks)).fingerprint()


@pytest.mark.parametrize(
    "blocks",
    [
        {"input": {"limit": None, "format": "parquet"}},
        {"task": {"temperature": 0.0}},
        {"backend": {"kind": "fake", "max_running": 3, "kv_cache_gb": 1.0}},
        {"replicas": {"min": 1, "max": 7, "cpus_each": 2.0}},
        {"output": {"on_exists": "overwrite", "target_file_mb": 1}},
        {"output": {"format": "jsonl", "compression": "gzip", "partition_by": ["id"]}},
        {"errors": {"max_failed_rows": 0.5, "bad_files": "skip"}},
    ],
    ids=str,
)
def test_what_does_not_change_the_output_does_not_change_the_fingerprint(
    make_job: MakeJob, blocks: dict[str, Any]
) -> None:
    assert prepare(make_job()).fingerprint() == prepare(make_job(**blocks)).fingerprint()


def test_the_input_by_another_name_is_the_same_input(make_job: MakeJob, records: Path) -> None:
    by_glob = make_job(input={"path": str(records / "*.parquet")})
    assert prepare(make_job()).fingerprint() == prepare(by_glob).fingerprint()


@pytest.mark.parametrize("change", ["time", "rows", "another file"])
def test_files_that_changed_change_the_fingerprint(make_job: MakeJob, records: Path, change: str) -> None:
    before = prepare(make_job()).fingerprint()
    if change == "time":
        os.utime(records / "a.parquet", ns=(1, 1))
    elif change == "rows":
        rewrite(records)
    else:
        shutil.copy(records / "a.parquet", records / "b.parquet")
    assert prepare(make_job()).fingerprint() != before


def test_another_model_in_the_same_place_changes_the_fingerprint(make_job: MakeJob, own_model: Path) -> None:
    job = make_job(model={"path": str(own_model)})
    before = prepare(job).fingerprint()
    assert before == prepare(make_job()).fingerprint(), "the place itself does not matter"
    (own_model / "model.safetensors").write_bytes(b"weights")
    with_weights = prepare(job).fingerprint()
    change_config(own_model, n_positions=65)
    assert len({str(before), str(with_weights), str(prepare(job).fingerprint())}) == 3


def test_the_fingerprint_and_the_lineage_are_plain_values(make_job: MakeJob) -> None:
    run = prepare(make_job())
    for facts in (run.fingerprint(), run.lineage()):
        assert json.loads(json.dumps(facts)) == facts
    lineage = run.lineage()
    assert lineage["task"]["prompt"] == "{{ text }}" and len(lineage["prompt_sha256"]) == 64
    assert {"gptj-batch", "torch", "ray", "python"} <= lineage["versions"].keys()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("labl", r'the output has no column "labl"; it has "text", "score", "tags", "_hidden", "generated_text"'),
        ("score", r'"score" is double; partitions are by text, whole numbers'),
        ("tags", r'"tags" is list<.*>; partitions are by text'),
        ("_hidden", r'readers take no folder whose name begins with "_", as that of "_hidden"'),
    ],
)
def test_columns_that_cannot_name_folders_are_refused(
    make_job: MakeJob, records: Path, column: str, message: str
) -> None:
    rewrite(records, score=[0.5], tags=[["x"]], _hidden=["x"])
    with pytest.raises(ConfigError, match=rf"^output\.partition_by: {message}"):
        prepare(make_job(output={"partition_by": ["text", column]}))


def test_partitions_are_by_columns_of_the_input_and_by_added_ones_with_their_prefix(make_job: MakeJob) -> None:
    prepare(make_job(output={"partition_by": ["id", "g_finish_reason"], "prefix": "g_"}))
    with pytest.raises(ConfigError, match='has no column "finish_reason"'):
        prepare(make_job(output={"partition_by": ["finish_reason"], "prefix": "g_"}))


def test_one_split_of_a_dataset_is_prepared(make_job: MakeJob, tmp_path: Path) -> None:
    import datasets

    rows = {name: datasets.Dataset.from_dict({"text": ["a"] * size}) for name, size in (("train", 40), ("test", 7))}
    datasets.DatasetDict(rows).save_to_disk(tmp_path / "saved")
    job = make_job(input={"path": str(tmp_path / "saved"), "format": "huggingface", "split": "test"})
    assert prepare(job).plan.num_rows == 7
