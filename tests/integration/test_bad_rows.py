"""Rows that cannot be done: each has its reason, and takes nothing with it."""

import pyarrow as pa
import pytest

from integration.desk import GENERATE, GENERATED, MAX_NEW_TOKENS, ROOM, Desk, text_with_bad_bytes
from integration.running import (
    CANARY,
    output_table,
    run_report,
)
from integration.tiny_model import TinyModel

pytestmark = [pytest.mark.timeout(600), pytest.mark.without_ray]


@pytest.mark.on_ray
def test_each_bad_row_has_its_reason_and_the_others_are_done(desk: Desk, tiny: TinyModel) -> None:
    texts: list[bytes | None] = [
        f"{CANARY} good".encode(), None, b"", b"   ", CANARY.encode() + b" \xff\xfe",
        b"~" * ROOM, b"~" * (ROOM + 1), b"~" * 5000, "also good: é 😀".encode(),
    ]  # fmt: skip
    desk.write_rows({"text": text_with_bad_bytes(texts)}, "a.parquet")
    # a whole unit of rows that cannot be done, and one behind it that can
    desk.write_rows({"text": pa.nulls(5, pa.string())}, "b.parquet")
    source = desk.write_rows({"text": pa.array([f"{CANARY} last"])}, "c.parquet")
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
            assert row["generated_text"] == tiny.decode(tiny.greedy(prompt, MAX_NEW_TOKENS))
    report = run_report(desk.output())
    assert (report["rows"], report["done"], report["failed"]) == (15, 5, 10)
    assert sum(report["errors"].values()) == 10


def test_a_prompt_cut_on_the_left_keeps_its_end_and_the_count_of_tokens_is_true(desk: Desk, tiny: TinyModel) -> None:
    texts = ["!" * 9 + "~" * (ROOM - 9), "!" * 9 + "~" * (ROOM - 8), "!" * 900 + "~" * 9]
    job = desk.job(desk.write_rows({"text": texts}), {**GENERATE, "truncate": "left"})
    assert desk.run(job).code == 0
    for row in output_table(desk.output()).to_pylist():
        kept = tiny.encode(row["text"][-ROOM:])
        assert row["num_prompt_tokens"] == len(kept) == ROOM
        assert row["generated_text"] == tiny.decode(tiny.greedy(kept, MAX_NEW_TOKENS))
    assert run_report(desk.output())["truncated_this_run"] == 2


def test_a_run_whose_rows_all_fail_is_complete_and_ends_with_3(desk: Desk) -> None:
    source = desk.write_rows({"text": pa.array([f"{CANARY}".encode()] * 50, pa.binary())})
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


@pytest.mark.on_ray
def test_a_run_whose_first_rows_all_fail_is_stopped_with_3_and_can_be_gone_on_with(desk: Desk) -> None:
    source = desk.write_rows({"text": pa.array([CANARY.encode()] * 400, pa.binary())})
    job = desk.job(source, GENERATE, backend={"kind": "fake"}, errors={"stop_after": 64})
    stopped = desk.run(job)
    assert stopped.code == 3, stopped.stderr
    assert "of the first" in stopped.stderr and 'column "text" is binary' in stopped.stderr
    assert CANARY not in stopped.stderr and not (desk.output() / "_SUCCESS").exists()
    assert run_report(desk.output())["exit_code"] == 3 and "errors.stop_after" in run_report(desk.output())["reason"]
    ended = desk.run(job, "errors.stop_after=null")
    assert ended.code == 3 and 0 < run_report(desk.output())["rows_this_run"] < 400
    assert output_table(desk.output()).num_rows == 400


def test_texts_of_special_tokens_huge_ones_and_keys_that_come_twice_are_ordinary_rows(
    desk: Desk, tiny: TinyModel
) -> None:
    end = "<|endoftext|>"
    texts = [end, end * 3, f"{end} {CANARY}", "x" * (10 * 2**20), "\x00\u200b\ufeff", "good"]
    source = desk.write_rows({"name": ["a", "a", None, "", "b", "b"], "text": texts})
    ended = desk.run(desk.job(source, GENERATE, input={"key": "name"}, errors={"max_failed_rows": 1}))
    assert ended.code == 0, ended.stderr
    rows = output_table(desk.output()).to_pylist()
    assert [row["text"] for row in rows] == texts
    assert [row["error"] is None for row in rows] == [True, True, True, False, True, True]
    assert "the prompt has more than 4194304 characters" in rows[3]["error"] and len(rows[3]["error"]) < 300
    for row in (rows[0], rows[1], rows[5]):
        prompt = tiny.encode(row["text"])
        assert row["generated_text"] == tiny.decode(tiny.greedy(prompt, MAX_NEW_TOKENS))
    assert run_report(desk.output())["failed"] == 1
