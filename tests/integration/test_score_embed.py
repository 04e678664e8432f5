"""The tasks `score` and `embed` from end to end: Parquet in, Ray, GPT-J, Parquet out."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from gptj_batch.demo import demo_records
from gptj_batch.model import GPTJConfig, GPTJForSequenceClassification
from integration.desk import Desk
from integration.running import CANARY, output_table, run_report
from integration.tiny_model import N_POSITIONS, TinyModel

pytestmark = [pytest.mark.timeout(600), pytest.mark.without_ray]

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
TEXTS = [f"{CANARY} won the match.", "Shares fell 🙂\r\nas the market closed.", None, "", "~", "~" * 150, "A new chip"]
QUESTIONS = ["Who?", "Why?", "What?", "When?", "Where?", "Which?", "~" * 90]


def rows_of(
    desk: Desk, task: dict[str, Any], texts: list[str | None], name: str, **blocks: Any
) -> list[dict[str, Any]]:
    columns = {"id": range(len(texts)), "text": pa.array(texts, pa.string()), "question": QUESTIONS[: len(texts)]}
    source = desk.write_rows(columns, f"{name}.parquet") / f"{name}.parquet"
    ended = desk.run(desk.job(source, task, name, errors={"max_failed_rows": 5}, **blocks))
    assert ended.code == 0, ended.stderr
    assert CANARY not in ended.stdout + ended.stderr
    return sorted(output_table(desk.output(name)).to_pylist(), key=lambda row: row["id"])


def logprob_sum(tiny: TinyModel, token_ids: list[int], first_scored: int) -> float:
    logprobs = tiny.logprobs(token_ids)
    return sum(float(logprobs[place - 1, token_ids[place]]) for place in range(first_scored, len(token_ids)))


@pytest.mark.on_ray
def test_texts_are_scored_as_the_dense_model_does_row_by_row(desk: Desk, tiny: TinyModel) -> None:
    rows = rows_of(desk, {"kind": "score", "text": "{{ text }}"}, TEXTS, "alone")
    assert list(rows[0]) == ["id", "text", "question", "logprob_sum", "num_scored_tokens", "perplexity", "error"]
    assert [row["error"] is None for row in rows] == [True, True, False, False, True, True, True]
    assert 'column "text" is null' in rows[2]["error"] and "the rendered text is empty" in rows[3]["error"]
    for row in (rows[2], rows[3]):
        assert row["logprob_sum"] is row["num_scored_tokens"] is row["perplexity"] is None
    assert (rows[4]["logprob_sum"], rows[4]["num_scored_tokens"], rows[4]["perplexity"]) == (0.0, 0, None)
    for row in (rows[0], rows[1], rows[6]):
        token_ids = tiny.encode(row["text"])
        expected = logprob_sum(tiny, token_ids, 1)
        assert row["num_scored_tokens"] == len(token_ids) - 1
        assert row["logprob_sum"] == pytest.approx(expected, abs=1e-4)
        assert row["perplexity"] == pytest.approx(math.exp(-expected / (len(token_ids) - 1)), rel=1e-4)
    long, half = tiny.encode(TEXTS[5] or ""), N_POSITIONS // 2
    expected = logprob_sum(tiny, long[:N_POSITIONS], 1)
    for begin in range(half, len(long) - half, half):
        expected += logprob_sum(tiny, long[begin : begin + N_POSITIONS], half)
    assert (rows[5]["num_scored_tokens"], rows[5]["logprob_sum"]) == (149, pytest.approx(expected, abs=1e-3))
    report = run_report(desk.output("alone"))
    assert (report["rows"], report["failed"], report["truncated_this_run"]) == (7, 2, 0)
    # one window each, but the long text's: 64 tokens, twice 64 half a context further on, and the rest
    short = sum(len(tiny.encode(text)) for text in TEXTS if text and text[0] != "~")
    assert report["prompt_tokens_this_run"] == short + 64 + 64 + 64 + (150 - 96)


def test_texts_are_scored_behind_contexts_which_are_cut_where_that_is_asked_for(desk: Desk, tiny: TinyModel) -> None:
    task = {"kind": "score", "context": "{{ question }}", "text": " {{ text }}"}
    texts = [TEXTS[0], TEXTS[6], "x", "x", "x", "x", "x"]
    rows = rows_of(desk, task, texts, "error")
    assert [row["error"] is None for row in rows] == [True] * 6 + [False]
    assert "the context has 90 tokens and 62 fit before the text" in rows[6]["error"]
    rows = rows_of(desk, {**task, "truncate": "left"}, texts, "left")
    for row in rows:
        context, text = tiny.encode(row["question"]), tiny.encode(" " + row["text"])
        context = context[-(N_POSITIONS - len(text)) :]
        expected = logprob_sum(tiny, context + text, len(context))
        assert (row["error"], row["num_scored_tokens"]) == (None, len(text))
        assert row["logprob_sum"] == pytest.approx(expected, abs=1e-4)
    assert run_report(desk.output("left"))["truncated_this_run"] == 1


def hidden(tiny: TinyModel, token_ids: list[int], layer: int) -> torch.Tensor:
    with torch.inference_mode():
        output = tiny.model(torch.tensor([token_ids]), output_hidden_states=True)
    states: torch.Tensor = output.hidden_states[layer][0]
    return states


@pytest.mark.on_ray
def test_embeddings_are_those_of_the_dense_model_row_by_row(desk: Desk, tiny: TinyModel) -> None:
    rows = rows_of(desk, {"kind": "embed", "text": "{{ text }}", "truncate": "left"}, TEXTS, "embed")
    assert [row["error"] is None for row in rows] == [True, True, False, False, True, True, True]
    kind = output_table(desk.output("embed")).schema.field("embedding").type
    assert kind == pa.list_(pa.float32(), 64), "also behind Parquet, nulls and all"
    for row in rows:
        if row["error"] is not None:
            assert row["embedding"] is None
            continue
        states = hidden(tiny, tiny.encode(row["text"])[-N_POSITIONS:], -1)
        assert row["embedding"] == pytest.approx(states.mean(0).tolist(), abs=1e-5)
    assert run_report(desk.output("embed"))["truncated_this_run"] == 1
    page = (desk.output("embed") / "_gptj_batch" / "report.html").read_text()
    assert "vectors of 64 numbers" in page and CANARY not in page


def test_a_classifiers_body_embeds_and_a_row_does_not_depend_on_the_others(desk: Desk, tiny: TinyModel) -> None:
    config = GPTJConfig(**{**tiny.model.config.to_dict(), "id2label": None, "label2id": None, "num_labels": 3})
    model = GPTJForSequenceClassification(config)
    model.transformer.load_state_dict(tiny.model.transformer.state_dict())
    folder = desk.folder / "classifier"
    model.save_pretrained(folder)
    shutil.copy(tiny.folder / "tokenizer.json", folder)
    task = {"kind": "embed", "text": "{{ text }}", "pooling": "last", "layer": 1, "normalize": True}
    blocks = {"model": {"path": str(folder), "dtype": "float32"}, "output": {"prefix": "e_"}}
    texts = [TEXTS[0], TEXTS[1], TEXTS[6]]
    together = rows_of(desk, task, texts, "together", **blocks)
    for number, text in enumerate(texts):
        assert text is not None
        state = hidden(tiny, tiny.encode(text), 1)[-1]
        assert together[number]["e_embedding"] == pytest.approx((state / state.norm()).tolist(), abs=1e-5)
        (alone,) = rows_of(desk, task, [text], f"alone{number}", **blocks)
        assert alone["e_embedding"] == pytest.approx(together[number]["e_embedding"], abs=1e-6)


@pytest.mark.parametrize("backend", ["native", "fake"])
def test_the_demos_jobs_run_as_they_stand(desk: Desk, backend: str) -> None:
    for name in ("demo-score", "demo-embed"):
        output = desk.output(f"{name}-{backend}")
        settings = {"input.path": demo_records(), "input.limit": 40, "output.path": output, "backend.kind": backend}
        ended = desk.run(CONFIGS / f"{name}.yaml", *(f"{setting}={value}" for setting, value in settings.items()))
        assert ended.code == 0, ended.stderr
        assert "40 rows: 40 done, 0 failed" in ended.stdout
        table = output_table(output)
        if name == "demo-embed":
            embedding = np.array(table.column("embedding").to_pylist())
            assert embedding.shape == (40, 128)
            assert np.linalg.norm(embedding, axis=1) == pytest.approx(np.ones(40), abs=1e-3)
        else:
            assert min(table.column("num_scored_tokens").to_pylist()) >= 1
            assert all(value >= 1.0 for value in table.column("perplexity").to_pylist())
