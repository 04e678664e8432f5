import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import models, normalizers, pre_tokenizers

from gptj_batch.errors import BackendError, ConfigError, RecordError
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import LabelRequest
from gptj_batch.results import Failed, Labelled
from gptj_batch.tasks.classify import ClassifySettings, ClassifyTask, probabilities

LOGPROBS = st.floats(-1e6, 0.0)


def task(**settings: Any) -> ClassifyTask:
    values = {"kind": "classify", "prompt": "{{ text }}\nTopic:", "labels": ["World", "Sports"], **settings}
    return ClassifyTask(ClassifySettings.model_validate(values))


def labelled(*logprobs: float) -> Labelled:
    return Labelled(key="k", label_logprobs=logprobs, num_prompt_tokens=5)


def columns(of: ClassifyTask, rows: Sequence[Labelled | None], tokenizer: Tokenizer) -> dict[str, list[Any]]:
    """What the rows' results become, by way of the Arrow array that they travel in."""
    raw = pa.array([None if row is None else of.pack([row]) for row in rows], type=of.raw_type)
    arrays = of.columns(raw.to_pylist(), [None] * len(raw), tokenizer)
    assert [array.type for array in arrays] == [field.type for field in of.adds]
    return {field.name: array.to_pylist() for field, array in zip(of.adds, arrays, strict=True)}


# Settings


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"labels": ["World"]}, "at least 2 items"),
        ({"labels": {"World": "w"}}, "at least 2 items"),
        ({"labels": ["World", ""]}, "a label and its text must not be empty"),
        ({"labels": {"a": "x", "b": ""}}, "a label and its text must not be empty"),
        ({"labels": {"": "x", "b": "y"}}, "a label and its text must not be empty"),
        ({"labels": ["a", "b", "a"]}, "two labels have the same text 'a'; the model cannot tell them apart"),
        ({"labels": {"a": "x", "b": "x"}}, "two labels have the same text 'x'"),
        ({"labels": ["a", 1]}, "valid string"),
        ({"labels": {"a": 1, "b": "x"}}, "valid string"),
        ({"labels": {1: "a", 2: "b"}}, "valid string"),
        ({"labels": "ab"}, "valid tuple"),
        ({"likelihood": "median"}, "'sum' or 'mean'"),
        ({"method": "head"}, "'prompt'"),
        ({"truncate": "middle"}, "'left', 'right' or 'error'"),
        ({"prompt": ""}, "at least 1 character"),
        ({"temperature": 1.0}, "Extra inputs"),
        ({"calibrate": "context_free"}, "'none' or 'content_free'"),
        ({"abstain_below": 1.1}, "less than or equal to 1"),
        ({"abstain_below": -0.1}, "greater than or equal to 0"),
        ({"abstain_below": math.nan}, "greater than|finite|less than"),
        ({"deduplicate": 1}, "valid boolean"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rule(setting: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        task(**setting)


def test_labels_that_become_the_same_tokens_are_refused_with_the_tokenizer(tokenizer: Tokenizer) -> None:
    # A tokenizer that folds case cannot tell these labels apart.
    folding = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    folding.normalizer = normalizers.Lowercase()
    with pytest.raises(ConfigError, match=r"task\.labels: 'World' and 'WORLD' become the same tokens"):
        task(labels=["World", "WORLD"]).request_maker(Tokenizer(folding))


def test_a_label_without_tokens_is_refused_with_the_tokenizer() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ConfigError, match=r"task\.labels: the text of 'blank' has no tokens"):
        task(labels={"a": "a", "blank": "  "}).request_maker(Tokenizer(words))


# The prompt and the labels' texts


def test_the_template_names_the_columns_that_are_read() -> None:
    made = task(truncate="right")
    assert made.reads == {"text"} and made.settings.truncate == "right"
    assert made.prompt({"text": "news"}) == "news\nTopic:"
    with pytest.raises(ConfigError, match=r'task\.prompt: the input has no column "text"'):
        made.check_columns(["body"])
    with pytest.raises(RecordError, match='column "text" is null'):
        made.prompt({"text": None})


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("{{ text }}\nTopic:", (" World", " Sports")),
        ("{{ text }}", (" World", " Sports")),
        ("{{ text }}\nTopic: ", ("World", "Sports")),
        ("{{ text }}\n", ("World", "Sports")),
        ("Topic:\t", ("World", "Sports")),
        ("Topic:\u00a0", ("World", "Sports")),
    ],
)
def test_labels_of_a_list_stand_as_words_behind_the_prompt(prompt: str, texts: tuple[str, ...]) -> None:
    assert task(prompt=prompt).label_texts == texts


@pytest.mark.parametrize("prompt", ["{{ text }}", "{{ text }} "])
def test_texts_of_a_map_are_taken_as_they_stand(prompt: str) -> None:
    made = task(prompt=prompt, labels={"bad": "no good", "good": " very good "})
    assert made.labels == ("bad", "good")
    assert made.label_texts == ("no good", " very good ")


def test_one_request_scores_all_labels_behind_the_prompt(tokenizer: Tokenizer) -> None:
    (request,) = task().request_maker(tokenizer).requests("k", [1, 2])
    assert isinstance(request, LabelRequest)
    assert (request.key, list(request.prompt_token_ids)) == ("k", [1, 2])
    assert [tokenizer.decode(ids) for ids in request.label_token_ids] == [" World", " Sports"]


@pytest.mark.parametrize(
    ("likelihood", "labels", "relative"),
    [
        ("sum", ["World", "Quetzalcoatlus"], True),
        ("mean", ["World", "Quetzalcoatlus"], False),
        ("mean", {"first": "a", "second": "b"}, True),
    ],
)
def test_only_differences_are_asked_for_where_probabilities_are_the_same(
    tokenizer: Tokenizer, likelihood: str, labels: Any, relative: bool
) -> None:
    made = task(likelihood=likelihood, labels=labels)
    (request,) = made.request_maker(tokenizer).requests("k", [1, 2])
    assert isinstance(request, LabelRequest) and request.relative is relative
    lengths = [len(ids) for ids in request.label_token_ids] if likelihood == "mean" else [1, 1]
    absolute = [-3.0, -5.0]
    off = [logprob + 7.25 for logprob in absolute]
    are_same = probabilities(off, lengths) == pytest.approx(probabilities(absolute, lengths))
    assert are_same or not relative


def test_the_longest_label_must_fit_behind_the_prompt(tokenizer: Tokenizer) -> None:
    lengths = [len(ids) for ids in tokenizer.encode_batch([" World", " Quetzalcoatlus"])]
    assert lengths[0] < lengths[1]
    assert task(labels=["World", "Quetzalcoatlus"]).request_maker(tokenizer).reserved_tokens == lengths[1]


# Probabilities


def test_probabilities_are_the_softmax_of_the_sums() -> None:
    # e^0 : e^-1 = 2.71828 : 1
    assert probabilities([-1.0, -2.0], [1, 1]) == pytest.approx([0.7310585786, 0.2689414214])
    assert probabilities([math.log(0.6), math.log(0.3), math.log(0.1)], [1, 1, 1]) == pytest.approx([0.6, 0.3, 0.1])


def test_probabilities_of_means_divide_by_the_labels_tokens_first() -> None:
    # -6 / 3 = -2 against -1 / 1: the same softmax as above, the other way round
    assert probabilities([-6.0, -1.0], [3, 1]) == pytest.approx([0.2689414214, 0.7310585786])


def test_what_is_far_below_any_exponent_is_nothing_and_not_an_error() -> None:
    assert probabilities([-1e5, -1e5 - 1.0], [1, 1]) == pytest.approx([0.7310585786, 0.2689414214])
    assert probabilities([-1.0, -1e9], [1, 1]) == [1.0, 0.0]
    assert probabilities([-math.inf, -1.0], [1, 1]) == [0.0, 1.0]


@given(st.lists(st.tuples(LOGPROBS, st.integers(1, 20)), min_size=2, max_size=20))
def test_probabilities_sum_to_one_and_keep_the_order(labels: list[tuple[float, int]]) -> None:
    logprobs, lengths = zip(*labels, strict=True)
    result = probabilities(logprobs, lengths)
    assert sum(result) == pytest.approx(1.0)
    assert all(0.0 <= probability <= 1.0 for probability in result)
    means = [logprob / length for logprob, length in labels]
    for one, mean in zip(result, means, strict=True):
        for other, its_mean in zip(result, means, strict=True):
            assert not (mean > its_mean and one < other)


@given(st.lists(LOGPROBS, min_size=2, max_size=8), st.floats(-100, 100))
def test_what_all_labels_have_in_common_does_not_matter(logprobs: list[float], common: float) -> None:
    shifted = [logprob + common for logprob in logprobs]
    ones = [1] * len(logprobs)
    assert probabilities(shifted, ones) == pytest.approx(probabilities(logprobs, ones), abs=1e-6)


# Calibration


def calibrated(tokenizer: Tokenizer, *content_free: Sequence[float], **settings: Any) -> ClassifyTask:
    """The task that knows what the model gives its labels behind prompts without content."""
    made = task(calibrate="content_free", **settings)
    assert len(made.baseline_requests(tokenizer)) == 3
    return made.with_baseline([labelled(*logprobs) for logprobs in content_free], tokenizer)


def test_without_calibration_nothing_is_asked_of_the_model_before(tokenizer: Tokenizer) -> None:
    assert task().baseline_requests(tokenizer) == []


def test_the_labels_are_scored_behind_prompts_without_content(tokenizer: Tokenizer) -> None:
    requests = task(calibrate="content_free").baseline_requests(tokenizer)
    assert [tokenizer.decode(request.prompt_token_ids) for request in requests] == [
        "N/A\nTopic:",
        "[MASK]\nTopic:",
        "\nTopic:",
    ]
    assert all(isinstance(request, LabelRequest) for request in requests)


def test_calibration_divides_by_the_probabilities_without_content(tokenizer: Tokenizer) -> None:
    # p = (0.7, 0.3) and p_cf = (0.8, 0.2): 0.7 / 0.8 : 0.3 / 0.2 = 7 : 12
    made = calibrated(tokenizer, [math.log(0.9), math.log(0.1)], [math.log(0.7), math.log(0.3)])
    row = labelled(5 + math.log(0.7), 5 + math.log(0.3))
    assert columns(task(), [row], tokenizer)["label"] == ["World"]
    result = columns(made, [row, None], tokenizer)
    assert result["label"] == ["Sports", None]
    assert dict(result["label_scores"][0]) == pytest.approx({"World": 7 / 19, "Sports": 12 / 19})
    assert result["label_score"][0] == pytest.approx(12 / 19)


def test_means_are_calibrated_by_means(tokenizer: Tokenizer) -> None:
    labels = ["World", "Quetzalcoatlus"]
    short, long = (len(ids) for ids in tokenizer.encode_batch([f" {label}" for label in labels]))
    content_free = [math.log(0.8) * short, math.log(0.2) * long]
    made = calibrated(tokenizer, content_free, labels=labels, likelihood="mean")
    result = columns(made, [labelled(math.log(0.7) * short, math.log(0.3) * long)], tokenizer)
    assert dict(result["label_scores"][0]) == pytest.approx({"World": 7 / 19, "Quetzalcoatlus": 12 / 19})


def test_a_row_without_content_favours_no_label_once_it_is_calibrated(tokenizer: Tokenizer) -> None:
    made = calibrated(tokenizer, [-900.0, -3.0])
    assert columns(made, [labelled(-900.0, -3.0)], tokenizer)["label_score"] == pytest.approx([0.5])


def test_a_model_that_cannot_be_asked_is_an_error_of_the_run(tokenizer: Tokenizer) -> None:
    failed = Failed(key="content_free#0", error="logits are not finite")
    with pytest.raises(BackendError, match=r"^task\.calibrate: a prompt without content failed: logits are not finite"):
        task(calibrate="content_free").with_baseline([failed, labelled(-1.0, -2.0)], tokenizer)


def test_prompts_without_content_must_fit(tokenizer: Tokenizer) -> None:
    made = task(calibrate="content_free", labels={"a": "x", "b": "y"})
    needed = len(tokenizer.encode_batch(["[MASK]\nTopic:"])[0])
    assert made.encoder(tokenizer, needed + 1)
    with pytest.raises(ConfigError, match=rf"^task\.calibrate: .* has {needed} tokens and {needed - 1} fit"):
        made.encoder(tokenizer, needed)


def test_a_template_whose_own_text_does_not_fit_is_refused_before_the_first_row(tokenizer: Tokenizer) -> None:
    made = task(prompt="q" * 70 + "{{ text }}\nTopic:", labels={"a": "x", "b": "y"})
    with pytest.raises(ConfigError, match=r"^task\.prompt: the template's own text has \d+ tokens and 63 fit"):
        made.encoder(tokenizer, 64)


# Columns


@pytest.mark.parametrize(("threshold", "label"), [(None, "Sports"), (0.73, "Sports"), (0.74, None), (1.0, None)])
def test_below_the_threshold_there_is_no_label_and_the_scores_stay(
    tokenizer: Tokenizer, threshold: float | None, label: str | None
) -> None:
    result = columns(task(abstain_below=threshold), [labelled(-2.0, -1.0)], tokenizer)
    assert result["label"] == [label]
    assert result["label_score"] == pytest.approx([0.7310585786])
    assert [name for name, _ in result["label_scores"][0]] == ["World", "Sports"]


def test_a_row_becomes_its_likeliest_label_and_every_probability(tokenizer: Tokenizer) -> None:
    result = columns(task(), [labelled(-2.0, -1.0)], tokenizer)
    assert result["label"] == ["Sports"]
    assert result["label_score"] == pytest.approx([0.7310585786])
    ((world, first), (sports, second)) = result["label_scores"][0]
    assert (world, sports) == ("World", "Sports")
    assert (first, second) == pytest.approx((0.2689414214, 0.7310585786))


@pytest.mark.parametrize(("top_k", "kept"), [(1, ["b"]), (2, ["b", "c"]), (9, ["b", "c", "a"])])
def test_top_k_keeps_the_likeliest_labels_and_their_probabilities(
    tokenizer: Tokenizer, top_k: int, kept: list[str]
) -> None:
    whole, cut = (
        columns(task(labels=["a", "b", "c"], top_k=k), [labelled(-3.0, -1.0, -2.0)], tokenizer) for k in (None, top_k)
    )
    assert [label for label, _ in cut["label_scores"][0]] == kept
    assert dict(cut["label_scores"][0]).items() <= dict(whole["label_scores"][0]).items()
    assert (cut["label"], cut["label_score"]) == (whole["label"], whole["label_score"])


def test_the_labels_of_a_map_are_reported_and_not_their_texts(tokenizer: Tokenizer) -> None:
    result = columns(task(labels={"bad": "awful", "good": "great"}), [labelled(-1.0, -2.0)], tokenizer)
    assert result["label"] == ["bad"]
    assert [label for label, _ in result["label_scores"][0]] == ["bad", "good"]


def test_of_equal_labels_the_first_given_wins(tokenizer: Tokenizer) -> None:
    result = columns(task(labels=["c", "a", "b"]), [labelled(-1.0, -1.0, -1.0)], tokenizer)
    assert result["label"] == ["c"]
    assert result["label_score"] == pytest.approx([1 / 3])


def test_the_mean_takes_from_the_short_label_its_advantage(tokenizer: Tokenizer) -> None:
    labels = ["World", "Quetzalcoatlus"]
    short, long = (len(ids) for ids in tokenizer.encode_batch([f" {label}" for label in labels]))
    assert short < long
    # Each token of the long label is likelier, and all of them together are not.
    row = labelled(-1.0 * short, -0.9 * long)
    assert columns(task(labels=labels), [row], tokenizer)["label"] == ["World"]
    result = columns(task(labels=labels, likelihood="mean"), [row], tokenizer)
    assert result["label"] == ["Quetzalcoatlus"]
    assert dict(result["label_scores"][0]) == pytest.approx(
        {"World": 1 / (1 + math.exp(0.1)), "Quetzalcoatlus": 1 / (1 + math.exp(-0.1))}
    )


@pytest.mark.parametrize("likelihood", ["sum", "mean"])
def test_a_failed_row_is_null_in_every_column(tokenizer: Tokenizer, likelihood: str) -> None:
    result = columns(task(likelihood=likelihood), [None, labelled(-1.0, -2.0), None], tokenizer)
    for values in result.values():
        assert (values[0], values[2]) == (None, None)
        assert values[1] is not None


def test_without_rows_and_with_failed_rows_only_the_types_are_the_same(tokenizer: Tokenizer) -> None:
    assert columns(task(), [], tokenizer) == {"label": [], "label_score": [], "label_scores": []}
    assert columns(task(), [None], tokenizer) == {"label": [None], "label_score": [None], "label_scores": [None]}


def test_log_likelihoods_travel_without_loss(tokenizer: Tokenizer) -> None:
    raw = pa.array([task().pack([labelled(-0.1, -1e-300)]), None], type=task().raw_type)
    assert raw.to_pylist() == [[-0.1, -1e-300], None]
