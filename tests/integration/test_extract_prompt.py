"""Extraction by prompt from end to end: Parquet in, Ray, a language model held to each row's text, Parquet out."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gptj_batch.constraints.passage import is_border
from gptj_batch.demo import demo_records
from integration.desk import Desk
from integration.running import output_table, run_report
from integration.tiny_model import END_OF_TEXT, TinyModel
from jobs.demo import CONFIGS

pytestmark = [pytest.mark.timeout(600), pytest.mark.without_ray]

ADDED = ["answer_text", "answer_start", "answer_end", "answer_score", "answers", "error"]
PROMPT = "{{ text[:20] }} A:"
TASK = {"kind": "extract", "method": "prompt", "prompt": PROMPT, "context": "{{ text }}", "max_answer_tokens": 8}
TEXTS = [
    "The team won the match.", "a\r\ne\u0301 🙂🙂 \U0001d518 👩\u200d🚀 漢字\u00a0z", None,
    "one the one the", " ", "~" * 100,
]  # fmt: skip


def run(desk: Desk, name: str, texts: list[str | None], task: dict[str, Any], **blocks: Any) -> list[dict[str, Any]]:
    source = desk.write_rows({"id": range(len(texts)), "text": texts})
    ended = desk.run(desk.job(source, task, name, errors={"max_failed_rows": len(texts)}, **blocks))
    assert ended.code == 0, ended.stderr
    return sorted(output_table(desk.output(name)).to_pylist(), key=lambda row: row["id"])


def check_offsets(row: dict[str, Any], context: str) -> None:
    assert [row[name] for name in ADDED[:4]] == list(row["answers"][0].values())
    for answer in row["answers"]:
        if answer["text"] is not None:
            assert context[answer["start"] : answer["end"]] == answer["text"] == answer["text"].strip() != ""
        assert 0.0 <= answer["score"] <= 1.0


def test_the_demo_answers_with_parts_of_its_texts(desk: Desk) -> None:
    overrides = [f"input.path={demo_records()}", f"output.path={desk.output()}"]
    ended = desk.run(CONFIGS / "demo-extract-prompt.yaml", *overrides)
    assert ended.code == 0, ended.stderr
    rows = output_table(desk.output()).to_pylist()
    assert len(rows) == pq.read_metadata(demo_records()).num_rows and list(rows[0])[-6:] == ADDED
    for row in rows:
        assert row["error"] is None and len(row["answers"]) == 1
        check_offsets(row, row["text"])
    assert sum(row["answer_text"] == row["answer"] for row in rows) > 0.3 * len(rows), (
        "it was trained on such questions"
    )
    assert run_report(desk.output())["failed"] == 0


def words_from(text: str) -> Iterator[str]:
    """Every part of a text that cuts no word and neither begins nor ends in white space."""
    places = [place for place in range(len(text) + 1) if is_border(text, place)]
    for start in places:
        yield from (part for end in places if (part := text[start:end]) and part == part.strip())


def greedy(tiny: TinyModel, prompt: str, context: str) -> tuple[str, float]:
    """The answer that the dense model gives, and its probability: at each token, all parts of the context are tried."""
    parts = {part.encode() for part in words_from(context)}
    end = tiny.model.config.eos_token_id
    texts = [
        tiny.tokenizer.decode([token], skip_special_tokens=False).encode()
        for token in range(tiny.tokenizer.get_vocab_size())
    ]
    token_ids, said, logprob = tiny.encode(prompt), b"", 0.0
    while True:
        scores = tiny.logprobs(token_ids)[-1]
        options = [
            token
            for token, text in enumerate(texts)
            if token != end
            and not text.startswith(b"\n")
            and any(part.startswith((said + text).removeprefix(b" ")) for part in parts)
        ]
        if said.strip() in parts:
            options.append(end)
            options.extend(token for token, text in enumerate(texts) if text.startswith(b"\n"))
        token = max(options, key=lambda option: float(scores[option]))
        if token == end or texts[token].startswith(b"\n"):
            return said.decode().strip(), math.exp(logprob)
        token_ids, said, logprob = [*token_ids, token], said + texts[token], logprob + float(scores[token])
        if len(options) == 1 and said.removeprefix(b" ") == max(parts, key=len):
            return said.decode().strip(), math.exp(logprob)


def test_answers_are_those_of_the_dense_model_held_to_the_text(desk: Desk, tiny: TinyModel) -> None:
    texts = ["The team won", "Shares fell as", "chip machine speed", "The met"]
    assert END_OF_TEXT not in "".join(texts)
    rows = run(desk, "dense", list(texts), {**TASK, "max_answer_tokens": 40})
    for row, text in zip(rows, texts, strict=True):
        answer, score = greedy(tiny, f"{text[:20]} A:", text)
        assert row["answer_text"] == answer and row["answer_start"] == text.index(answer)
        assert row["answer_score"] == pytest.approx(score, rel=1e-3)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=pytest.mark.on_ray), "fake"])
def test_offsets_are_exact_and_a_bad_row_touches_no_other(desk: Desk, backend: str) -> None:
    prompt = "{{ text if text[0] == '~' else text[:12] }} A:"
    task = {**TASK, "prompt": prompt, "max_answers": 3, "max_answer_tokens": 5}
    rows = run(desk, backend, TEXTS, task, backend={"kind": backend})
    for row in rows:
        if row["id"] in (2, 4, 5):
            assert [row[name] for name in ADDED[:5]] == [None] * 5
            continue
        assert row["error"] is None
        check_offsets(row, row["text"])
        texts = [answer["text"] for answer in row["answers"]]
        assert 1 <= len(texts) == len(set(texts)) <= 3
    assert 'column "text" is null' in rows[2]["error"]
    assert "the context is empty and holds no answer" in rows[4]["error"]
    assert "set truncate to left or right, lower max_answer_tokens" in rows[5]["error"]


def test_a_row_without_an_answer_is_null_where_that_is_allowed(desk: Desk) -> None:
    texts = [*TEXTS[:2], *TEXTS[3:]]
    task = {**TASK, "allow_no_answer": True, "truncate": "right", "prompt": "{{ text }} A:"}
    rows = run(desk, "none", texts, task)
    assert [row["error"] for row in rows] == [None] * len(texts)
    for row in rows:
        check_offsets(row, row["text"])
    empty = rows[3]
    assert empty["answer_text"] is empty["answer_start"] is empty["answer_end"] is None
    assert empty["answers"] == [{"text": None, "start": None, "end": None, "score": empty["answer_score"]}]


def test_a_model_without_a_language_modelling_head_is_refused(desk: Desk, tmp_path: Path) -> None:
    source = desk.write_rows({"text": ["x"]})
    model = CONFIGS.parents[1] / "gptj_batch" / "demo" / "question-answering"
    ended = desk.run(desk.job(source, TASK, "head", model={"path": str(model)}))
    assert ended.code == 2
    assert "task.kind extract with method prompt needs a GPTJForCausalLM" in ended.stderr
