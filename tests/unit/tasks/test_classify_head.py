import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gptj_batch.errors import CheckpointError, ConfigError, RecordError
from gptj_batch.model_folder import ProblemType
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import ClassifyRequest
from gptj_batch.results import Classified
from gptj_batch.tasks.base import Encoded
from gptj_batch.tasks.classify_head import ClassifyHeadSettings, ClassifyHeadTask, sigmoid

LABELS = ("calm", "glad", "sad")
SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"


def task(problem: ProblemType = SINGLE, labels: tuple[str, ...] = LABELS, **settings: Any) -> ClassifyHeadTask:
    values = {"kind": "classify", "method": "head", "text": "{{ text }}", **settings}
    return ClassifyHeadTask(ClassifyHeadSettings.model_validate(values), labels, problem)


def columns(of: ClassifyHeadTask, logits: list[float], tokenizer: Tokenizer) -> dict[str, Any]:
    result = Classified(key="k", logits=tuple(logits), num_prompt_tokens=5)
    raw = pa.array([of.pack([result]), None], type=of.raw_type)
    arrays = of.columns(raw.to_pylist(), [None, None], tokenizer)
    assert [array.type for array in arrays] == [field.type for field in of.adds]
    assert all(array.to_pylist()[1] is None for array in arrays), "a failed row is null in every column"
    return {field.name: array.to_pylist()[0] for field, array in zip(of.adds, arrays, strict=True)}


def test_single_labels_are_the_softmax_of_the_logits(tokenizer: Tokenizer) -> None:
    result = columns(task(), [0.0, 1.0, -1.0], tokenizer)
    total = 1 + math.e + 1 / math.e
    assert (result["label"], result["label_score"]) == ("glad", pytest.approx(math.e / total))
    assert result["label_scores"] == [
        ("calm", pytest.approx(1 / total)),
        ("glad", pytest.approx(math.e / total)),
        ("sad", pytest.approx(1 / math.e / total)),
    ]


def test_several_labels_are_those_over_the_threshold_likeliest_first(tokenizer: Tokenizer) -> None:
    result = columns(task(MULTI), [0.0, 2.0, -1.0], tokenizer)
    assert (result["label"], result["label_score"]) == (["glad", "calm"], pytest.approx(sigmoid(2.0)))
    assert [label for label, _ in result["label_scores"]] == list(LABELS)
    assert columns(task(MULTI, multi_label_threshold=0.6), [0.0, 2.0, -1.0], tokenizer)["label"] == ["glad"]
    none = columns(task(MULTI), [-1.0, -2.0, -3.0], tokenizer)
    assert (none["label"], none["label_score"]) == ([], None)
    assert len(none["label_scores"]) == 3


def test_a_regression_is_its_value_and_nothing_else(tokenizer: Tokenizer) -> None:
    assert columns(task("regression", ("LABEL_0",)), [-3.25], tokenizer) == {"value": -3.25}


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_top_k_keeps_the_likeliest_and_their_probabilities(tokenizer: Tokenizer, problem: ProblemType) -> None:
    logits = [0.0, 1.0, 2.0]
    whole, cut = (columns(task(problem, top_k=k), logits, tokenizer) for k in (None, 2))
    assert [label for label, _ in cut["label_scores"]] == ["sad", "glad"]
    assert dict(cut["label_scores"]).items() <= dict(whole["label_scores"]).items()
    assert (cut["label"], cut["label_score"]) == (whole["label"], whole["label_score"])
    assert len(columns(task(problem, top_k=9), logits, tokenizer)["label_scores"]) == 3


@given(st.floats(-1e6, 1e6))
def test_the_sigmoid_of_any_logit_is_a_probability(logit: float) -> None:
    assert 0.0 <= sigmoid(logit) <= 1.0
    assert sigmoid(logit) + sigmoid(-logit) == pytest.approx(1.0)


def test_a_checkpoint_of_no_use_is_refused() -> None:
    with pytest.raises(CheckpointError, match="a regression of 3 values"):
        task("regression")
    with pytest.raises(CheckpointError, match="two labels have the same name"):
        task(labels=("a", "a"))


def test_a_text_is_rendered_encoded_and_cut_as_asked(tokenizer: Tokenizer) -> None:
    records = [{"text": "x" * 9}, {"text": None}, {"text": ""}, {"text": "ab"}]
    cut, null, empty, short = task(truncate="right").encoder(tokenizer, 4)(records)
    assert isinstance(cut, Encoded) and (len(cut.token_ids), cut.num_dropped_tokens) == (4, 5)
    assert isinstance(null, RecordError) and 'column "text" is null' in str(null)
    assert isinstance(empty, RecordError) and "empty" in str(empty)
    assert isinstance(short, Encoded) and short.num_dropped_tokens == 0
    (refused,) = task().encoder(tokenizer, 4)(records[:1])
    assert isinstance(refused, RecordError) and "9 tokens and 4 fit; set truncate" in str(refused)


def test_a_row_is_one_request(tokenizer: Tokenizer) -> None:
    made = task()
    assert made.request_maker(tokenizer).requests("k", [1, 2]) == [ClassifyRequest(key="k", prompt_token_ids=[1, 2])]
    assert (made.head, made.reads) == ("sequence-classification", {"text"})
    with pytest.raises(ConfigError, match=r'task\.text: the input has no column "text"'):
        made.check_columns(["body"])


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"prompt": "x"}, "Extra inputs"),
        ({"multi_label_threshold": 1.5}, "less than or equal to 1"),
        ({"top_k": 0}, "greater than or equal to 1"),
        ({"text": ""}, "at least 1 character"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rule(setting: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        task(**setting)
