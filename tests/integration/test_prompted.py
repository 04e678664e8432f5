"""What prompted tasks can be asked for, from end to end: calibration, settings of a row, truncation, deduplication."""

import json
from typing import Any

import pyarrow as pa
import pytest

from integration.desk import GENERATE, GENERATED, MAX_NEW_TOKENS, ROOM, Desk
from integration.running import CANARY, output_table, run_report
from integration.tiny_model import TinyModel

pytestmark = [pytest.mark.timeout(600), pytest.mark.without_ray]

LABELS = ["World", "Sports", "Business"]
EXAMPLES = '{% for e in [{"text": "Goal", "topic": "Sports"}] %}{{ e.text }}: {{ e.topic }}\n{% endfor %}'
PROMPT = EXAMPLES + "{{ text }}\nTopic:"
TEXTS = ["The team won.", "Shares fell.", "A new chip", "The minister met", "the match", "a speed"]


def prompt_of(text: str) -> str:
    return f"Goal: Sports\n{text}\nTopic:"


def calibrated_probabilities(tiny: TinyModel, text: str, mean: bool) -> list[float]:
    """diag(p_cf)^-1 p, normalised (Zhao et al. 2021), each probability computed by itself by the dense model."""
    texts = [f" {label}" for label in LABELS]
    row = tiny.label_probabilities(prompt_of(text), texts, mean)
    empty = [tiny.label_probabilities(prompt_of(nothing), texts, mean) for nothing in ("N/A", "[MASK]", "")]
    favour = [sum(of_label) / 3 for of_label in zip(*empty, strict=True)]
    weights = [one / other for one, other in zip(row, favour, strict=True)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("likelihood", [pytest.param("sum", marks=pytest.mark.on_ray), "mean"])
def test_calibrated_probabilities_are_those_of_the_paper(desk: Desk, tiny: TinyModel, likelihood: str) -> None:
    expected = [calibrated_probabilities(tiny, text, likelihood == "mean") for text in TEXTS]
    best = sorted(map(max, expected))
    threshold = (best[2] + best[3]) / 2
    task = {
        "kind": "classify", "prompt": PROMPT, "labels": LABELS, "likelihood": likelihood,
        "calibrate": "content_free", "abstain_below": threshold,
    }  # fmt: skip
    ended = desk.run(desk.job(desk.write_rows({"text": TEXTS}), task))
    assert ended.code == 0, ended.stderr
    for row, scores in zip(output_table(desk.output()).to_pylist(), expected, strict=True):
        assert dict(row["label_scores"]) == pytest.approx(dict(zip(LABELS, scores, strict=True)), abs=1e-5)
        assert row["label_score"] == pytest.approx(max(scores), abs=1e-5)
        likeliest = LABELS[scores.index(max(scores))]
        assert row["label"] == (likeliest if max(scores) >= threshold else None)
        assert row["error"] is None


def test_calibration_by_a_prompt_that_uses_no_column_runs_nothing(desk: Desk) -> None:
    task = {"kind": "classify", "prompt": "Topic:", "labels": LABELS, "calibrate": "content_free"}
    ended = desk.run(desk.job(desk.write_rows({"text": TEXTS}), task))
    assert ended.code == 2
    assert "task.calibrate: content_free puts texts without content in place of the prompt's columns" in ended.stderr
    assert not desk.output().exists()


OPTIONS: list[dict[str, Any] | None] = [
    None,
    {"max_new_tokens": 2},
    {"max_new_tokens": 9, "min_new_tokens": 9},
    {"temperature": 0.9, "seed": 7},
    {"temperature": -1.0},
    {"max_new_tokens": 1000},
]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_row_is_generated_by_its_own_settings(desk: Desk, tiny: TinyModel, as_json: bool) -> None:
    kind = pa.string() if as_json else None
    written = [option if option is None or not as_json else json.dumps(option) for option in OPTIONS]
    source = desk.write_rows({"text": TEXTS, "options": pa.array(written, kind)})
    job = desk.job(source, {**GENERATE, "settings_column": "options"}, errors={"max_failed_rows": 2})
    ended = desk.run(job)
    assert ended.code == 0, ended.stderr
    rows = output_table(desk.output()).to_pylist()
    for row, num_new in ((rows[0], MAX_NEW_TOKENS), (rows[1], 2)):
        expected = tiny.greedy(tiny.encode(row["text"]), num_new)
        assert (row["generated_text"], row["num_generated_tokens"]) == (tiny.decode(expected), len(expected))
    assert (rows[2]["num_generated_tokens"], rows[2]["finish_reason"]) == (9, "length")
    where = 'column "options" (task.settings_column): '
    assert rows[4]["error"] == where + "temperature must be greater than or equal to 0"
    assert rows[5]["error"].startswith(where + "max_new_tokens must be at most 63")
    # A row draws as it would in a job that says the same of all rows.
    sampled = desk.job(source, {**GENERATE, "temperature": 0.9, "seed": 7}, "sampled")
    assert desk.run(sampled).code == 0
    in_job = output_table(desk.output("sampled")).to_pylist()[3]
    assert [rows[3][name] for name in GENERATED] == [in_job[name] for name in GENERATED]


@pytest.mark.parametrize("side", ["left", "right"])
def test_of_a_long_prompt_the_templates_own_text_stays_whole(desk: Desk, tiny: TinyModel, side: str) -> None:
    texts = ["!" * 30 + "~" * 500, "~" * 500 + "!" * 30, "short"]
    task = {**GENERATE, "prompt": "The minister: {{ text }}\nTopic:", "truncate": side}
    ended = desk.run(desk.job(desk.write_rows({"text": texts}), task))
    assert ended.code == 0, ended.stderr
    assert "2 prompts were cut to fit the context (task.truncate)" in ended.stdout
    rows = output_table(desk.output()).to_pylist()
    for row in rows[:2]:
        parts = [row["text"][-n:] if side == "left" else row["text"][:n] for n in range(1, ROOM)]
        prompts = [tiny.encode(f"The minister: {part}\nTopic:") for part in parts]
        (kept,) = [prompt for prompt in prompts if len(prompt) == ROOM]
        assert row["num_prompt_tokens"] == ROOM
        assert row["generated_text"] == tiny.decode(tiny.greedy(kept, MAX_NEW_TOKENS))
    whole = tiny.encode("The minister: short\nTopic:")
    assert rows[2]["generated_text"] == tiny.decode(tiny.greedy(whole, MAX_NEW_TOKENS))
    assert run_report(desk.output())["truncated_this_run"] == 2


def test_a_template_that_leaves_no_room_runs_nothing(desk: Desk) -> None:
    task = {**GENERATE, "prompt": "~" * (ROOM + 1) + "{{ text }}", "truncate": "left"}
    ended = desk.run(desk.job(desk.write_rows({"text": TEXTS}), task))
    assert ended.code == 2
    assert f"task.prompt: the template's own text has {ROOM + 1} tokens and {ROOM} fit" in ended.stderr
    assert not desk.output().exists()


@pytest.mark.on_ray
def test_duplicates_are_computed_once_and_come_out_as_without(desk: Desk) -> None:
    texts = [*TEXTS, f"{CANARY} a", *TEXTS * 20, None, f"{CANARY} b"]
    source = desk.write_rows({"text": texts})
    errors = {"max_failed_rows": 1}
    plain = desk.run(desk.job(source, {**GENERATE, "logprobs": True}, "plain", errors=errors))
    once = desk.run(desk.job(source, {**GENERATE, "logprobs": True, "deduplicate": True}, "once", errors=errors))
    assert plain.code == once.code == 0, once.stderr
    assert output_table(desk.output("once")).equals(output_table(desk.output("plain")))
    assert f"{len(TEXTS) * 20} duplicates were computed once" in once.stdout
    assert "duplicates" not in plain.stdout
    report, all_of_it = run_report(desk.output("once")), run_report(desk.output("plain"))
    assert report["duplicates_this_run"] == len(TEXTS) * 20
    assert report["generated_tokens_this_run"] < all_of_it["generated_tokens_this_run"] / 10


def test_samples_are_never_merged(desk: Desk) -> None:
    source = desk.write_rows({"text": ["the match"] * 40})
    task = {**GENERATE, "temperature": 1.0, "deduplicate": True}
    ended = desk.run(desk.job(source, task))
    assert ended.code == 0, ended.stderr
    assert "duplicates" not in ended.stdout
    assert len(set(output_table(desk.output()).column("generated_text").to_pylist())) > 20


def test_labels_of_equal_rows_are_computed_once(desk: Desk, tiny: TinyModel) -> None:
    source = desk.write_rows({"text": TEXTS * 10})
    task = {"kind": "classify", "prompt": PROMPT, "labels": LABELS, "deduplicate": True, "calibrate": "content_free"}
    ended = desk.run(desk.job(source, task))
    assert ended.code == 0, ended.stderr
    assert f"{len(TEXTS) * 9} duplicates were computed once" in ended.stdout
    expected = [calibrated_probabilities(tiny, text, mean=False) for text in TEXTS]
    for row, scores in zip(output_table(desk.output()).to_pylist(), expected * 10, strict=True):
        assert [score for _, score in row["label_scores"]] == pytest.approx(scores, abs=1e-5)
