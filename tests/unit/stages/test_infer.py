import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gptj_batch.errors import BackendError, CheckpointError
from gptj_batch.stages.columns import (
    BACKEND_FACTS,
    ERROR,
    IS_DUPLICATE,
    KEY,
    NOTES,
    NUM_DROPPED_TOKENS,
    NUM_GENERATED_TOKENS,
    NUM_PROMPT_TOKENS,
    PROMPT_TOKEN_IDS,
    RAW,
    UNIT,
    without_internal,
)
from gptj_batch.stages.infer import InferStage
from gptj_batch.tasks.base import Task
from stages.tables import (
    GOOD,
    classify,
    classify_head,
    embed,
    extract,
    generate,
    infer,
    records,
    replica,
    score,
    tokenized,
)

TASKS = {
    "generate": generate(),
    "samples": generate(num_samples=3, temperature=1.0, logprobs=True),
    "classify": classify(),
    "classify by head": classify_head(),
    "extract": extract(),
    "score": score(),
    "embed": embed(),
}


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table.column(name).to_pylist()
    return values


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_good_row_has_a_result_and_the_others_keep_their_error(
    tmp_path: Path, model_folder: Path, task: Task
) -> None:
    before = tokenized(tmp_path, task, records(), model_folder)
    after = infer(task, model_folder)(before)
    assert without_internal(after).equals(records())
    assert [raw is not None for raw in column(after, RAW)] == GOOD
    assert column(after, ERROR) == column(before, ERROR)
    assert column(after, NUM_PROMPT_TOKENS) == [len(ids or ()) for ids in column(before, PROMPT_TOKEN_IDS)]


def test_generated_tokens_of_all_samples_are_counted_and_none_for_labels(tmp_path: Path, model_folder: Path) -> None:
    for task, tokens in ((generate(), 4), (TASKS["samples"], 12), (classify(), 0)):
        after = infer(task, model_folder)(tokenized(tmp_path, task, records(), model_folder))
        assert column(after, NUM_GENERATED_TOKENS) == [tokens if good else 0 for good in GOOD]


def test_a_failed_request_is_the_error_of_its_row_alone(tmp_path: Path, model_folder: Path) -> None:
    table = tokenized(tmp_path, generate(), records(["a", "b", "c"]), model_folder)
    after = infer(generate(), model_folder, "rows.parquet:1#0")(table)
    assert column(after, ERROR) == [None, "no luck with rows.parquet:1#0", None]
    assert [raw is not None for raw in column(after, RAW)] == [True, False, True]
    assert column(after, NUM_GENERATED_TOKENS) == [4, 0, 4]


def test_one_failed_sample_fails_its_row(tmp_path: Path, model_folder: Path) -> None:
    task = TASKS["samples"]
    table = tokenized(tmp_path, task, records(["a", "b"]), model_folder)
    after = infer(task, model_folder, "rows.parquet:0#1", "rows.parquet:0#2")(table)
    assert column(after, ERROR) == ["no luck with rows.parquet:0#1", None], "the first reason stands"
    assert column(after, RAW)[0] is None and len(column(after, RAW)[1]) == 3
    # What was computed was computed: the first sample's tokens count.
    assert column(after, NUM_GENERATED_TOKENS) == [4, 12]


def test_all_windows_of_a_context_are_counted(tmp_path: Path, model_folder: Path) -> None:
    task = extract(question="Who?")
    before = tokenized(tmp_path, task, records(["a", "x" * 100]), model_folder)
    after = infer(task, model_folder)(before)
    short, long = (len(ids) for ids in column(before, PROMPT_TOKEN_IDS))
    counted = column(after, NUM_PROMPT_TOKENS)
    assert counted[0] == short
    assert counted[1] > long, "the question and the overlap more than once"
    assert [len(raw) for raw in column(after, RAW)] == [1, len(column(after, NOTES)[1]["windows"])]


def test_one_failed_window_fails_its_row(tmp_path: Path, model_folder: Path) -> None:
    task = extract(question="Who?")
    table = tokenized(tmp_path, task, records(["x" * 100, "b"]), model_folder)
    after = infer(task, model_folder, "rows.parquet:0#1")(table)
    assert column(after, ERROR) == ["no luck with rows.parquet:0#1", None]


def test_a_text_with_nothing_to_ask_is_done_without_a_request(tmp_path: Path, model_folder: Path) -> None:
    task = score(text="{{ text }}", context=None)
    after = infer(task, model_folder)(tokenized(tmp_path, task, records(["x", "xyz", "x"]), model_folder))
    assert [raw["num_scored_tokens"] for raw in column(after, RAW)] == [0, 2, 0]
    assert column(after, NUM_PROMPT_TOKENS) == [0, 3, 0] and column(after, ERROR) == [None] * 3


def test_a_failed_classification_is_an_error_too(tmp_path: Path, model_folder: Path) -> None:
    table = tokenized(tmp_path, classify(), records(["a", "b"]), model_folder)
    after = infer(classify(), model_folder, "rows.parquet:1")(table)
    assert column(after, ERROR) == [None, "no luck with rows.parquet:1"]
    assert column(after, NUM_PROMPT_TOKENS)[1] == 0


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_rows_result_does_not_depend_on_its_company(tmp_path: Path, model_folder: Path, task: Task) -> None:
    table = tokenized(tmp_path, task, records(["a", None, "b", "c"]), model_folder)
    stage = infer(task, model_folder)
    together = column(stage(table), RAW)
    alone = [column(stage(table.slice(row, 1)), RAW)[0] for row in range(4)]
    assert together == alone


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("texts", [[], [None], ["good"]], ids=["empty", "failed", "good"])
def test_the_schema_is_the_same_whatever_the_rows(
    tmp_path: Path, model_folder: Path, task: Task, texts: list[str | None]
) -> None:
    stage = infer(task, model_folder)
    table = stage(tokenized(tmp_path, task, records(texts), model_folder))
    full = stage(tokenized(tmp_path, task, records(), model_folder))
    assert table.num_rows == len(texts)
    assert table.schema.equals(full.schema, check_metadata=True)
    internal = [KEY, UNIT, NUM_DROPPED_TOKENS, NOTES, RAW, NUM_PROMPT_TOKENS, NUM_GENERATED_TOKENS]
    internal += [IS_DUPLICATE, ERROR]
    assert table.schema.names == ["id", "text", *internal]
    assert table.schema.field(RAW).type == task.raw_type


def test_the_table_says_what_it_was_computed_with_beside_what_it_said_before(
    tmp_path: Path, model_folder: Path
) -> None:
    after = infer(generate(), model_folder)(tokenized(tmp_path, generate(), records(), model_folder))
    metadata = after.schema.metadata
    assert json.loads(metadata[BACKEND_FACTS])["kind"] == "fake"
    assert metadata[b"who"] == b"tests"


def test_the_fake_answers_in_the_models_vocabulary(model_folder: Path) -> None:
    facts = json.loads(infer(generate(), model_folder)._facts)
    assert facts["vocab_size"] == json.loads((model_folder / "config.json").read_text())["vocab_size"]


def test_a_dead_backend_is_no_row_error(tmp_path: Path, model_folder: Path) -> None:
    table = tokenized(tmp_path, generate(), records(), model_folder)
    stage = infer(generate(), model_folder)
    stage._backend.close()
    with pytest.raises(BackendError):
        stage(table)


def test_a_replica_without_its_model_says_so() -> None:
    with pytest.raises(CheckpointError, match="/no/such/folder"):
        InferStage(generate(), replica(Path("/no/such/folder")))


# Duplicates


@pytest.mark.parametrize(
    "settings", [{}, {"logprobs": True}, {"num_samples": 2, "temperature": 1.0}], ids=["greedy", "logprobs", "samples"]
)
def test_rows_come_out_as_without_deduplication(tmp_path: Path, model_folder: Path, settings: dict[str, Any]) -> None:
    texts = ["a", "b", "a", None, "a", "b"]
    plain, once = generate(**settings), generate(**settings, deduplicate=True)
    table = tokenized(tmp_path, plain, records(texts), model_folder)
    expected, after = infer(plain, model_folder)(table), infer(once, model_folder)(table)
    assert column(after, RAW) == column(expected, RAW)
    assert column(after, ERROR) == column(expected, ERROR)
    assert after.schema.equals(expected.schema)
    copied = [row in (2, 4, 5) and "num_samples" not in settings for row in range(6)]
    assert column(after, IS_DUPLICATE) == copied
    tokens = [
        0 if is_copy else own for is_copy, own in zip(copied, column(expected, NUM_GENERATED_TOKENS), strict=True)
    ]
    assert column(after, NUM_GENERATED_TOKENS) == tokens


def test_labels_of_equal_rows_are_computed_once_over_all_tables_of_a_replica(
    tmp_path: Path, model_folder: Path
) -> None:
    for task in (classify(deduplicate=True), classify_head(deduplicate=True)):
        stage = infer(task, model_folder)
        table = tokenized(tmp_path, task, records(["a", "b", "a"]), model_folder)
        assert column(stage(table), IS_DUPLICATE) == [False, False, True]
        assert column(stage(table), IS_DUPLICATE) == [True, True, True]


def test_a_row_whose_twin_failed_is_computed_for_itself(tmp_path: Path, model_folder: Path) -> None:
    task = generate(deduplicate=True)
    table = tokenized(tmp_path, task, records(["a", "a", "a"]), model_folder)
    after = infer(task, model_folder, "rows.parquet:0#0")(table)
    assert column(after, ERROR) == ["no luck with rows.parquet:0#0", None, None]
    assert column(after, IS_DUPLICATE) == [False, False, False]


# Calibration


def test_the_model_is_asked_without_content_once_and_its_answer_taken_off_every_row(
    tmp_path: Path, model_folder: Path
) -> None:
    plain, task = classify(), classify(calibrate="content_free")
    table = tokenized(tmp_path, plain, records(["a", None, "b"]), model_folder)
    expected, after = infer(plain, model_folder)(table), infer(task, model_folder)(table)
    differences = [
        [one - other for one, other in zip(raw, calibrated, strict=True)]
        for raw, calibrated in zip(column(expected, RAW), column(after, RAW), strict=True)
        if raw is not None
    ]
    assert len(differences) == 2 and differences[0] == pytest.approx(differences[1])
    assert len(set(map(round, differences[0]))) > 1, "another number for every label"
    assert column(after, NUM_PROMPT_TOKENS) == column(expected, NUM_PROMPT_TOKENS), "of the rows' own prompts"
