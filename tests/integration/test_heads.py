"""Jobs with a trained head from end to end: Parquet in, Ray, a classifier or a reader, Parquet out."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from gptj_batch.demo import QUESTION_ANSWERING_LAYOUT, QUESTION_ANSWERING_PREFIX
from gptj_batch.model import GPTJConfig, GPTJForQuestionAnswering, GPTJForSequenceClassification, HeadModel
from integration.running import output_table, run_here, run_report, write_job
from integration.tiny_model import N_POSITIONS, TinyModel

pytestmark = [pytest.mark.timeout(600), pytest.mark.without_ray]

LABELS = ["calm", "glad", "sad"]
TEXTS = ["The team won the match.", "Shares fell 🙂\r\nas the market closed.", None, "A new chip", "~" * 100]
QUESTION = "Who won?"
MAX_ANSWER_TOKENS = 5


@dataclass(frozen=True)
class Outputs:
    code: int
    rows: list[dict[str, Any]]
    report: dict[str, Any]


@pytest.fixture(scope="module")
def save(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, HeadModel]]:
    """Write a checkpoint with the tiny model's backbone and a head whose logits differ much."""

    def save(kind: type[HeadModel], **settings: Any) -> tuple[Path, HeadModel]:
        folder = Path(tmp_path_factory.mktemp(kind.__name__))
        torch.manual_seed(3)
        model = kind(GPTJConfig(**{**tiny.model.config.to_dict(), "id2label": None, "label2id": None, **settings}))
        model.transformer.load_state_dict(tiny.model.transformer.state_dict())
        with torch.no_grad():
            for module in (module for name, module in model.named_children() if name != "transformer"):
                assert isinstance(module, nn.Linear)
                module.weight.normal_(0.0, 0.5)
        model.save_pretrained(folder)
        shutil.copy(tiny.folder / "tokenizer.json", folder)
        return folder, model.eval()

    return save


@pytest.fixture
def run(tmp_path: Path, on_one_node: None) -> Callable[..., Outputs]:
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": pa.array(TEXTS)}), tmp_path / "in.parquet")

    def run(model: Path, task: dict[str, Any]) -> Outputs:
        job = write_job(
            tmp_path / "job.yaml",
            input={"path": str(tmp_path / "in.parquet")},
            task=task,
            model={"path": str(model), "dtype": "float32"},
            output={"path": str(tmp_path / "out")},
            errors={"max_failed_rows": 2},
        )
        ended = run_here(job)
        assert ended.code in (0, 3), ended.stderr
        rows = output_table(tmp_path / "out").to_pylist()
        return Outputs(ended.code, sorted(rows, key=lambda row: row["id"]), run_report(tmp_path / "out"))

    return run


def class_logits(model: HeadModel, tiny: TinyModel, text: str) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tiny.encode(text)])).logits[0].double()
    return logits


@pytest.mark.on_ray
def test_single_labels_are_those_of_the_dense_classifier(
    run: Callable[..., Outputs], save: Callable[..., tuple[Path, HeadModel]], tiny: TinyModel
) -> None:
    names = {str(index): label for index, label in enumerate(LABELS)}
    folder, model = save(GPTJForSequenceClassification, id2label=names)
    out = run(folder, {"kind": "classify", "method": "head", "text": "{{ text }}"})
    assert out.code == 0 and (out.report["rows"], out.report["failed"]) == (5, 2)
    for row in out.rows:
        if row["text"] in (None, TEXTS[4]):
            assert row["error"] and row["label"] is row["label_score"] is row["label_scores"] is None
            continue
        expected = class_logits(model, tiny, row["text"]).softmax(0).tolist()
        assert [label for label, _ in row["label_scores"]] == LABELS
        assert [score for _, score in row["label_scores"]] == pytest.approx(expected, abs=1e-5)
        assert row["label"] == LABELS[expected.index(max(expected))] and row["error"] is None
    assert "100 tokens and 64 fit; set truncate" in out.rows[4]["error"]


def test_several_labels_and_a_regression_too(
    run: Callable[..., Outputs], save: Callable[..., tuple[Path, HeadModel]], tiny: TinyModel, tmp_path: Path
) -> None:
    task = {"kind": "classify", "method": "head", "text": "{{ text or 'none' }}", "truncate": "right"}
    folder, model = save(GPTJForSequenceClassification, num_labels=4, problem_type="multi_label_classification")
    out = run(folder, {**task, "top_k": 2, "multi_label_threshold": 0.3})
    for row in out.rows[:2]:
        scores = dict(enumerate(class_logits(model, tiny, row["text"]).sigmoid().tolist()))
        order = sorted(scores, key=lambda index: -scores[index])
        assert row["label"] == [f"LABEL_{index}" for index in order if scores[index] >= 0.3]
        assert [label for label, _ in row["label_scores"]] == [f"LABEL_{index}" for index in order[:2]]
    assert out.report["failed"] == 0 and all(row["error"] is None for row in out.rows)
    shutil.rmtree(tmp_path / "out")
    folder, model = save(GPTJForSequenceClassification, num_labels=1)
    out = run(folder, task)
    assert list(out.rows[0]) == ["id", "text", "value", "error"]
    for row in out.rows[:2]:
        assert row["value"] == pytest.approx(float(class_logits(model, tiny, row["text"])[0]), abs=1e-5)


def best_span(model: HeadModel, tiny: TinyModel, context: str) -> str:
    """Return the best span of a context of one window by trying all."""
    encoding = tiny.tokenizer.encode(QUESTION_ANSWERING_LAYOUT.format(question=QUESTION, context=context))
    prefix_chars = len(QUESTION_ANSWERING_PREFIX.format(question=QUESTION))
    shift = prefix_chars + 1
    with torch.inference_mode():
        output = model(torch.tensor([encoding.ids]))
    starts, ends = output.start_logits[0], output.end_logits[0]
    texts = [context[max(start - shift, 0) : max(end - shift, 0)].strip() for start, end in encoding.offsets]
    inside = [place for place, (_, end) in enumerate(encoding.offsets) if end > prefix_chars and texts[place]]
    spans = [(a, b) for a in inside for b in inside if a <= b < a + MAX_ANSWER_TOKENS]
    first, last = max(spans, key=lambda span: float(starts[span[0]] + ends[span[1]]))
    return context[max(encoding.offsets[first][0] - shift, 0) : encoding.offsets[last][1] - shift].strip()


@pytest.mark.on_ray
def test_answers_are_the_best_spans_of_the_dense_reader_and_stand_where_they_say(
    run: Callable[..., Outputs], save: Callable[..., tuple[Path, HeadModel]], tiny: TinyModel
) -> None:
    folder, model = save(GPTJForQuestionAnswering)
    task = {"kind": "extract", "question": QUESTION, "context": "{{ text }}", "max_question_tokens": 20, "top_k": 3}
    out = run(folder, {**task, "max_answer_tokens": MAX_ANSWER_TOKENS})
    assert out.code == 0 and [row["error"] is None for row in out.rows] == [True, True, False, True, True]
    assert out.rows[2]["answer_text"] is out.rows[2]["answers"] is None
    assert len(TEXTS[4]) > N_POSITIONS, "which takes several windows"
    for row in out.rows:
        for answer in row["answers"] or ():
            assert row["text"][answer["start"] : answer["end"]] == answer["text"] != ""
        if row["error"] is None:
            assert row["answer_text"] == row["answers"][0]["text"] and 1 <= len(row["answers"]) <= 3
    for row in (out.rows[0], out.rows[1], out.rows[3]):
        assert row["answer_text"] == best_span(model, tiny, row["text"])
    assert list(out.rows[0]) == [
        "id", "text", "answer_text", "answer_start", "answer_end", "answer_score", "answers", "error",
    ]  # fmt: skip


def test_every_setting_of_extract_by_head_goes_through_the_pipeline(
    run: Callable[..., Outputs], save: Callable[..., tuple[Path, HeadModel]], tmp_path: Path
) -> None:
    folder, _ = save(GPTJForQuestionAnswering)
    contexts = [
        "a\r\ne\u0301 🙂🙂 \U0001d518 👩\u200d🚀 漢字",
        " ",
        "~" * 100 + " e\u0301 🙂",
        None,
        "The team\r\nwon 🙂.",
    ]
    pq.write_table(pa.table({"id": range(len(contexts)), "text": contexts}), tmp_path / "in.parquet")
    task = {
        "kind": "extract", "method": "head", "question": QUESTION, "context": "{{ text }}", "stride_tokens": 7,
        "max_answer_tokens": 4, "max_question_tokens": 12, "top_k": 4, "allow_no_answer": True, "align_to_words": True,
        "window_tokens": 48,
    }  # fmt: skip
    for scoring in ("global_softmax", "pipeline"):
        out = run(folder, {**task, "scoring": scoring})
        assert [row["error"] is None for row in out.rows] == [True, True, True, False, True]
        for row in out.rows:
            answers = row["answers"] or ()
            assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)
            for answer in answers:
                start, end = answer["start"], answer["end"]
                text = None if start is None else row["text"][start:end]
                assert answer["text"] == text and (text is None or text == text.strip() != "")
        assert [answer["text"] for answer in out.rows[1]["answers"]] == [None], "an empty context has no answer"
        assert sum(answer["text"] is None for row in out.rows for answer in row["answers"] or ()) >= 1
        shutil.rmtree(tmp_path / "out")


def test_a_question_that_is_too_long_or_null_is_its_rows_error(
    run: Callable[..., Outputs], save: Callable[..., tuple[Path, HeadModel]]
) -> None:
    folder, _ = save(GPTJForQuestionAnswering)
    task = {"kind": "extract", "question": "{{ text }}", "context": "The team won.", "max_question_tokens": 20}
    out = run(folder, task)
    assert "max_question_tokens is 20" in out.rows[4]["error"] and 'column "text" is null' in out.rows[2]["error"]
    assert out.rows[3]["error"] is None and out.rows[3]["answer_text"]
