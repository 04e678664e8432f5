from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.stages.columns import ERROR, KEY, NOTES, NUM_DROPPED_TOKENS, PROMPT_TOKEN_IDS, UNIT, without_internal
from gptj_batch.stages.tokenize import ENCODE_ROWS, TokenizeStage, load_tokenizer
from gptj_batch.tasks.base import Task
from stages.tables import (
    GOOD,
    POSITIONS,
    TEXTS,
    classify,
    classify_head,
    embed,
    extract,
    generate,
    records,
    score,
    tokenized,
)


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table.column(name).to_pylist()
    return values


@pytest.mark.parametrize("task", [generate(), classify(), classify_head(), extract(), score(), embed()])
def test_every_row_has_token_ids_or_an_error(tmp_path: Path, model_folder: Path, task: Task) -> None:
    table = tokenized(tmp_path, task, records(), model_folder)
    assert without_internal(table).equals(records())
    assert [ids is not None for ids in column(table, PROMPT_TOKEN_IDS)] == GOOD
    assert [error is None for error in column(table, ERROR)] == GOOD
    assert [dropped is not None for dropped in column(table, NUM_DROPPED_TOKENS)] == GOOD


def test_the_tokens_are_those_of_the_rendered_prompt(tmp_path: Path, model_folder: Path, tokenizer: Tokenizer) -> None:
    table = tokenized(tmp_path, generate(), records(["the world"]), model_folder)
    assert tokenizer.decode(column(table, PROMPT_TOKEN_IDS)[0]) == "the world\n"
    assert column(table, NUM_DROPPED_TOKENS) == [0]


def test_an_error_says_what_is_wrong_and_holds_no_text(tmp_path: Path, model_folder: Path) -> None:
    errors = column(tokenized(tmp_path, generate(), records(), model_folder), ERROR)
    assert errors[1].startswith('column "text" is null')
    # 101 characters of which no two were merged; 4 of 64 positions are kept for what is generated.
    assert errors[2].startswith("the prompt has 101 tokens and 60 fit; set truncate to left or right")
    assert not any(text in error for text in TEXTS if text for error in errors if error)


@pytest.mark.parametrize(("side", "kept"), [("left", "b\n"), ("right", "a\n")])
def test_a_long_prompt_is_cut_on_the_side_that_was_chosen(
    tmp_path: Path, model_folder: Path, tokenizer: Tokenizer, side: str, kept: str
) -> None:
    text = "a" + "b" * 100
    task = generate(truncate=side, max_new_tokens=POSITIONS - 2)
    table = tokenized(tmp_path, task, records([text, "a"]), model_folder)
    assert [tokenizer.decode(ids) for ids in column(table, PROMPT_TOKEN_IDS)] == [kept, "a\n"]
    assert column(table, NUM_DROPPED_TOKENS) == [100, 0]
    assert column(table, ERROR) == [None, None]


def test_room_is_kept_for_the_longest_label(tmp_path: Path, model_folder: Path, tokenizer: Tokenizer) -> None:
    task = classify(truncate="left")
    table = tokenized(tmp_path, task, records(["x" * 200]), model_folder)
    reserved = task.request_maker(tokenizer).reserved_tokens
    assert len(column(table, PROMPT_TOKEN_IDS)[0]) == POSITIONS - reserved


def test_a_prompt_of_no_tokens_is_an_error(tmp_path: Path, model_folder: Path) -> None:
    table = tokenized(tmp_path, generate(prompt="{{ text }}"), records(["", "a"]), model_folder)
    assert [str(error)[:28] for error in column(table, ERROR)] == ["the rendered prompt is empty", "None"]


def test_invalid_utf8_is_the_error_of_its_row_alone(tmp_path: Path, model_folder: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"b\xff", b"c"]).buffers())
    table = tokenized(tmp_path, generate(), pa.table({"text": texts}), model_folder)
    assert [ids is not None for ids in column(table, PROMPT_TOKEN_IDS)] == [True, False, True]
    assert column(table, ERROR)[1].startswith('column "text" holds invalid UTF-8 at byte 1')


def test_rows_keep_their_order_over_the_borders_of_what_is_encoded_at_once(
    tmp_path: Path, model_folder: Path, tokenizer: Tokenizer
) -> None:
    texts = [None if row % 7 == 0 else f"row {row}" for row in range(2 * ENCODE_ROWS + 3)]
    table = tokenized(tmp_path, generate(), records(texts), model_folder)
    ids = column(table, PROMPT_TOKEN_IDS)
    assert [None if row is None else tokenizer.decode(row) for row in ids] == [
        None if text is None else f"{text}\n" for text in texts
    ]


def test_a_prompt_without_columns_is_the_same_for_every_row(tmp_path: Path, model_folder: Path) -> None:
    ids = column(tokenized(tmp_path, generate(prompt="Hello"), records(), model_folder), PROMPT_TOKEN_IDS)
    assert ids == [ids[0]] * 4 and ids[0]


@pytest.mark.parametrize("texts", [[], [None], ["x" * 500], ["good"]], ids=["empty", "null", "long", "good"])
def test_the_schema_is_the_same_whatever_the_rows(tmp_path: Path, model_folder: Path, texts: list[str | None]) -> None:
    table = tokenized(tmp_path, generate(), records(texts), model_folder)
    assert table.num_rows == len(texts)
    assert table.schema.names == ["id", "text", KEY, UNIT, PROMPT_TOKEN_IDS, NUM_DROPPED_TOKENS, NOTES, ERROR]
    assert table.schema.equals(tokenized(tmp_path, generate(), records(), model_folder).schema, check_metadata=True)


def test_a_process_loads_a_tokenizer_once(model_folder: Path) -> None:
    assert load_tokenizer(str(model_folder), None) is load_tokenizer(str(model_folder), None)


def test_rows_that_are_left_out_have_the_error_and_the_columns_of_all_others(
    tmp_path: Path, model_folder: Path
) -> None:
    done = tokenized(tmp_path, generate(), records(), model_folder)
    stage = TokenizeStage(generate(), str(model_folder), None, POSITIONS)
    left_out = stage.leave_out(done.select(["id", "text", KEY, UNIT]), "it ended its process")
    assert left_out.schema.equals(done.schema, check_metadata=True)
    assert column(left_out, ERROR) == ["it ended its process"] * done.num_rows
    assert column(left_out, PROMPT_TOKEN_IDS) == [None] * done.num_rows
