"""Summaries of results: right counts, and none of a record's text."""

import pandas as pd
import pyarrow as pa
import pytest

from gptj_batch.errors import ConfigError
from pipelines import summary
from pipelines.result_summary import MAX_REASONS

TEXT = "zqxcanary"


def classified(prefix: str = "") -> pa.Table:
    columns = {
        "label": ["a", "b", "a", None],
        "label_score": [0.9, 0.7, 0.5, None],
        "error": [None, None, None, "the prompt is too long"],
    }
    return pa.table({"text": [TEXT] * 4, **{prefix + name: values for name, values in columns.items()}})


def test_labels_failures_and_scores_are_counted_over_the_rows_that_are_done() -> None:
    done = summary(classified())
    assert (done.rows, done.done, done.failed) == (4, 3, 1)
    assert done.errors == {"the prompt is too long": 1}
    assert done.counted == {"label": {"a": 2, "b": 1}}
    (score,) = done.measured
    assert (score.name, score.least, score.median, score.most) == ("label_score", 0.5, 0.7, 0.9)


def test_it_shows_itself_as_lines_and_as_html() -> None:
    done = summary(classified())
    assert "4 rows: 3 done, 1 failed" in str(done) and "a: 2 (66.7%)" in repr(done)
    page = done._repr_html_()
    assert "<table" in page and ">a<" in page and "the prompt is too long" in page
    assert TEXT not in str(done) + page


def test_what_labels_are_called_is_escaped() -> None:
    page = summary(pa.table({"label": ["<script>x</script>"], "error": pa.nulls(1, pa.string())}))._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_prefix_is_taken_off() -> None:
    assert summary(classified("g_"), prefix="g_").counted["label"] == {"a": 2, "b": 1}
    with pytest.raises(ConfigError, match="give the prefix"):
        summary(classified("g_").drop_columns(["text"]))


def test_several_labels_of_a_row_count_each_and_none_counts_as_none() -> None:
    rows = pa.table({"label": [["a", "b"], [], ["a"]], "error": pa.nulls(3, pa.string())})
    assert summary(rows).counted["label"] == {"a": 2, "b": 1, "no label": 1}


def test_texts_are_measured_and_answers_that_are_none_counted() -> None:
    rows = pd.DataFrame({"answer_text": ["abc", None], "error": [None, None]}).astype({"error": "str"})
    done = summary(rows)
    assert done.counted["answers"] == {"answer": 1, "no answer": 1}
    assert [(one.name, one.most) for one in done.measured] == [("characters of answer_text", 3.0)]


def test_samples_of_a_row_are_measured_one_by_one() -> None:
    rows = pa.table(
        {"generated_text": [["a", "abc"]], "finish_reason": [["stop", "length"]], "num_generated_tokens": [[1, 3]]}
    )
    done = summary(rows)
    assert done.counted["finish_reason"] == {"stop": 1, "length": 1}
    assert {one.name: one.mean for one in done.measured} == {
        "num_generated_tokens": 2.0,
        "characters of generated_text": 2.0,
    }


def test_vectors_have_a_length() -> None:
    rows = pa.table({"embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))})
    assert summary(rows).measured[0].most == 2.0


def test_reasons_of_which_no_two_are_alike_are_cut() -> None:
    rows = pa.table({"label": pa.nulls(50, pa.string()), "error": [f"reason {row}" for row in range(50)]})
    assert len(summary(rows).errors) == MAX_REASONS


def test_data_that_no_task_has_seen_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of the columns"):
        summary(pd.DataFrame({"text": [TEXT]}))
