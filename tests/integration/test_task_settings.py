"""Settings of the contract's table of tasks that no other test takes through a whole job, each seen to do its work."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from integration.desk import GENERATE, MAX_NEW_TOKENS, Desk
from integration.running import output_table
from integration.tiny_model import END_OF_TEXT, N_POSITIONS, TinyModel

pytestmark = [pytest.mark.timeout(600), pytest.mark.extended]

TEXTS = ["The team won.", "Shares fell.", "A new chip", "The minister met", "the match", "a speed"]


def run(desk: Desk, task: dict[str, Any], **columns: Any) -> list[dict[str, Any]]:
    source = desk.write_rows({"id": range(len(TEXTS)), "text": TEXTS, **columns})
    ended = desk.run(desk.job(source, task))
    assert ended.code == 0, ended.stderr
    rows = sorted(output_table(desk.output()).to_pylist(), key=lambda row: row["id"])
    assert [row["error"] for row in rows] == [None] * len(TEXTS)
    return rows


def greedy(tiny: TinyModel, text: str) -> str:
    return tiny.decode(tiny.greedy(tiny.encode(text), MAX_NEW_TOKENS))


def test_filters_that_leave_one_token_make_of_sampling_the_greedy_text(desk: Desk, tiny: TinyModel) -> None:
    off = {"top_p": 1.0}
    own = [{}, {**off, "top_k": 1}, {**off, "min_p": 1.0}, {"temperature": 0.0, **off}, {"seed": 9}, off]
    task = {**GENERATE, "temperature": 3.0, "top_p": 1e-9, "settings_column": "own"}
    rows = run(desk, task, own=[json.dumps(one) for one in own])
    assert [row["generated_text"] for row in rows[:5]] == [greedy(tiny, text) for text in TEXTS[:5]]
    assert rows[5]["generated_text"] != greedy(tiny, TEXTS[5]), "without a filter it is drawn"


def test_settings_of_the_job_itself_filter_as_well(desk: Desk, tiny: TinyModel) -> None:
    rows = run(desk, {**GENERATE, "temperature": 3.0, "top_k": 40, "min_p": 1.0})
    assert [row["generated_text"] for row in rows] == [greedy(tiny, text) for text in TEXTS]


def penalised(tiny: TinyModel, text: str, penalty: float, least: int) -> list[int]:
    """Greedy, but tokens that were seen lose (by a penalty below 1 they gain), and the end waits for `least` tokens."""
    prompt = tiny.encode(text)
    token_ids = list(prompt)
    end = tiny.model.config.eos_token_id
    while len(token_ids) < len(prompt) + MAX_NEW_TOKENS and token_ids[-1] != end:
        with torch.no_grad():
            scores = tiny.model(torch.tensor([token_ids])).logits[0, -1].double()
        seen = list(set(token_ids))
        scores[seen] = torch.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        if len(token_ids) - len(prompt) < least:
            scores[end] = -torch.inf
        token_ids.append(int(scores.argmax()))
    return token_ids[len(prompt) :]


def test_a_penalty_of_repetition_changes_the_text_and_none_ends_too_early(desk: Desk, tiny: TinyModel) -> None:
    rows = run(desk, {**GENERATE, "repetition_penalty": 0.1, "min_new_tokens": MAX_NEW_TOKENS})
    expected = [penalised(tiny, text, 0.1, MAX_NEW_TOKENS) for text in TEXTS]
    assert [row["generated_text"] for row in rows] == [tiny.decode(ids) for ids in expected]
    assert {row["num_generated_tokens"] for row in rows} == {MAX_NEW_TOKENS}
    assert [row["generated_text"] for row in rows] != [greedy(tiny, text) for text in TEXTS]


def test_a_text_ends_before_any_of_the_stops(desk: Desk, tiny: TinyModel) -> None:
    texts = [greedy(tiny, text) for text in TEXTS]
    # A character of each of two texts, not the first: what is cut is then neither all nor nothing.
    stops = [next(char for char in text[1:] if char.isascii()) for text in texts[:2]]
    rows = run(desk, {**GENERATE, "stop": stops})
    for row, text in zip(rows, texts, strict=True):
        places = [text.find(stop) for stop in stops if stop in text]
        assert row["generated_text"] == (text[: min(places)] if places else text)
        assert row["finish_reason"] == "stop" or not places
    assert any(row["generated_text"] != text for row, text in zip(rows, texts, strict=True))


def test_samples_are_lists_and_each_token_has_its_log_probability(desk: Desk) -> None:
    rows = run(desk, {**GENERATE, "num_samples": 3, "temperature": 1.0, "seed": 4, "logprobs": True})
    lists = ("generated_text", "finish_reason", "num_generated_tokens", "generated_logprobs")
    for row in rows:
        assert [len(row[name]) for name in lists] == [3] * 4 and isinstance(row["num_prompt_tokens"], int)
        assert [len(logprobs) for logprobs in row["generated_logprobs"]] == row["num_generated_tokens"]
        assert max(max(logprobs) for logprobs in row["generated_logprobs"]) <= 0
    assert sum(len(set(row["generated_text"])) for row in rows) > 2 * len(rows)


@pytest.mark.parametrize("settings", [{"length_penalty": -2.0, "early_stopping": True}, {"early_stopping": "never"}])
def test_beams_find_what_transformers_finds(desk: Desk, tiny: TinyModel, settings: dict[str, Any]) -> None:
    rows = run(desk, {**GENERATE, "num_beams": 3, **settings})
    theirs = transformers.GPTJForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32).eval()
    for row in rows:
        ids = torch.tensor([tiny.encode(row["text"])])
        found = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=3, do_sample=False, max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=tiny.model.config.eos_token_id, **settings,
        )  # fmt: skip
        assert row["generated_text"] == tiny.decode(found[0, ids.shape[1] :].tolist())


SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": False}


def is_of_schema(text: str) -> bool:
    return json.loads(text) in ({"n": 1}, {"n": 22})


@pytest.mark.parametrize(
    ("constraint", "is_what_was_asked_for"),
    [
        ({"choices": ["World", "Sports news", "é"]}, lambda text: text in ("World", "Sports news", "é")),
        ({"regex": "[ab]{3}-[0-9]"}, lambda text: re.fullmatch("[ab]{3}-[0-9]", text) is not None),
        ({"json_schema": SCHEMA}, is_of_schema),
    ],
    ids=["choices", "regex", "json_schema"],
)
def test_texts_are_held_to_what_is_asked_for(
    desk: Desk, constraint: dict[str, Any], is_what_was_asked_for: Any
) -> None:
    rows = run(desk, {**GENERATE, "max_new_tokens": 24, **constraint})
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert all(is_what_was_asked_for(row["generated_text"]) for row in rows)


def test_answers_may_cut_words_and_go_over_lines(desk: Desk) -> None:
    task = {
        "kind": "extract", "method": "prompt", "prompt": "{{ text }} A:", "context": "{{ text }}\n{{ text }}",
        "max_answer_tokens": 3, "max_answers": 2, "separator": " | ", "whole_words": False, "one_line": False,
    }  # fmt: skip
    parts: list[tuple[str, str]] = []
    for row in run(desk, task):
        context = f"{row['text']}\n{row['text']}"
        for answer in row["answers"]:
            assert context[answer["start"] : answer["end"]] == answer["text"] != ""
            parts.append((context[: answer["start"]][-1:], context[answer["end"] :][:1]))
    assert any(before.isalpha() or after.isalpha() for before, after in parts), "a word was cut"


def scored(tiny: TinyModel, token_ids: Sequence[int], first_scored: int) -> float:
    logprobs = tiny.logprobs(token_ids)
    return sum(float(logprobs[place - 1, token_ids[place]]) for place in range(first_scored, len(token_ids)))


def test_the_first_token_is_scored_and_windows_are_as_far_apart_as_is_said(desk: Desk, tiny: TinyModel) -> None:
    stride = 10
    task = {"kind": "score", "text": "{{ text * 30 }}", "score_first_token": True, "stride_tokens": stride}
    for row in run(desk, task):
        ids = [*tiny.encode(END_OF_TEXT), *tiny.encode(row["text"] * 30)]
        expected, first, until = 0.0, 0, 1
        while until < len(ids):
            stop = min(first + N_POSITIONS, len(ids))
            expected += scored(tiny, ids[first:stop], until - first)
            first, until = first + stride, stop
        assert row["num_scored_tokens"] == len(ids) - 1 > N_POSITIONS
        assert row["logprob_sum"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("method", ["head", "prompt"])
def test_answers_to_the_same_question_are_found_once(desk: Desk, method: str) -> None:
    source = desk.write_rows({"id": range(60), "text": TEXTS * 10})
    by_head = {"question": "Who?", "context": "{{ text }}", "max_question_tokens": 20}
    by_prompt = {"prompt": "{{ text }} A:", "context": "{{ text }}"}
    task = {"kind": "extract", "method": method, **(by_head if method == "head" else by_prompt)}
    blocks: dict[str, Any] = {"model": {"path": "demo", "dtype": "float32"}}
    plain, once = (
        desk.run(desk.job(source, {**task, "deduplicate": flag}, f"{flag}", **blocks)) for flag in (False, True)
    )
    assert plain.code == once.code == 0, once.stderr
    assert "54 duplicates were computed once" in once.stdout and "duplicates" not in plain.stdout
    one, other = (output_table(desk.output(f"{flag}")).sort_by("id").to_pylist() for flag in (False, True))
    for a, b in zip(one, other, strict=True):
        assert a.pop("answer_score") == pytest.approx(b.pop("answer_score"), rel=1e-4)
        assert [{**answer, "score": 0} for answer in a["answers"]] == [
            {**answer, "score": 0} for answer in b["answers"]
        ]
