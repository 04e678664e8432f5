from pathlib import Path

import pyarrow as pa
import pytest

from gptj_batch.errors import ConfigError
from gptj_batch.records.schema import output_schema
from gptj_batch.stages.columns import without_internal
from gptj_batch.stages.decode import DecodeStage
from gptj_batch.tasks.base import Task
from stages.tables import GOOD, classify, embed, generate, infer, records, score, tokenized

TASKS = {
    "generate": generate(),
    "samples": generate(num_samples=2, temperature=1.0, logprobs=True),
    "classify": classify(likelihood="mean"),
    "score": score(),
    "embed": embed(normalize=True),
}


def decoded(folder: Path, task: Task, table: pa.Table, model_folder: Path, prefix: str = "") -> pa.Table:
    results = infer(task, model_folder)(tokenized(folder, task, table, model_folder))
    return DecodeStage(task, str(model_folder), None, prefix)(results)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("texts", [[], [None], ["good"], ["good", None]], ids=["empty", "failed", "good", "both"])
def test_the_columns_are_the_inputs_then_the_tasks_then_error(
    tmp_path: Path, model_folder: Path, task: Task, texts: list[str | None]
) -> None:
    table = without_internal(decoded(tmp_path, task, records(texts), model_folder))
    expected = output_schema(records().schema, task.adds.append(pa.field("error", pa.string())))
    assert table.schema.equals(expected), "what `prepare` promises before the run"
    assert table.schema.field("id").metadata[b"of"] == b"id"
    assert table.select(["id", "text"]).equals(records(texts))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_added_columns_are_null_where_and_only_where_there_is_an_error(
    tmp_path: Path, model_folder: Path, task: Task
) -> None:
    table = decoded(tmp_path, task, records(), model_folder)
    assert [error is None for error in table.column("error").to_pylist()] == GOOD
    for name in task.adds.names:
        assert [value is not None for value in table.column(name).to_pylist()] == GOOD, name


def test_every_added_name_stands_behind_the_prefix(tmp_path: Path, model_folder: Path) -> None:
    table = without_internal(decoded(tmp_path, classify(), records(), model_folder, "gptj_"))
    assert table.column_names == ["id", "text", "gptj_label", "gptj_label_score", "gptj_label_scores", "gptj_error"]


def test_a_column_of_the_input_is_never_written_over(tmp_path: Path, model_folder: Path) -> None:
    table = records().append_column("label", pa.array(["mine"] * 4))
    with pytest.raises(ConfigError, match='the task adds "label"'):
        decoded(tmp_path, classify(), table, model_folder)
    kept = decoded(tmp_path, classify(), table, model_folder, "new_")
    assert kept.column("label").to_pylist() == ["mine"] * 4


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_rows_that_are_left_out_have_the_error_and_the_columns_of_all_others(
    tmp_path: Path, model_folder: Path, task: Task
) -> None:
    results = infer(task, model_folder)(tokenized(tmp_path, task, records(), model_folder))
    stage = DecodeStage(task, str(model_folder), None, "")
    left_out = stage.leave_out(results, "it ended its process")
    assert left_out.schema.equals(stage(results).schema, check_metadata=True)
    assert left_out.column("error").to_pylist() == ["it ended its process"] * results.num_rows
    assert all(left_out.column(name).null_count == results.num_rows for name in task.adds.names)
