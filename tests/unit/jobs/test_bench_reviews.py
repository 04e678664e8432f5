from pathlib import Path

import pyarrow as pa
import pytest

from jobs.bench.reviews import TASKS, job_of, labels_found, report_of, scores_found, vectors_found
from pipelines.config import Job

SCORES = [("positive", 0.75), ("negative", 0.25)]
SCORE_TYPE = pa.map_(pa.string(), pa.float64())


def labels(**changes: object) -> pa.Table:
    row = {"label": "positive", "found_label": "positive", "found_label_score": 0.75, "found_error": None, **changes}
    failed = {"label": "negative", "found_label": None, "found_label_score": None, "found_error": "no"}
    table = pa.Table.from_pylist([row, failed])
    return table.append_column("found_label_scores", pa.array([SCORES, None], SCORE_TYPE))


def test_labels_that_do_not_fit_their_probabilities_are_counted() -> None:
    assert labels_found(labels()) == {"rows_with_wrong_columns": 0, "right": 0.5}
    assert labels_found(labels(found_label="negative"))["rows_with_wrong_columns"] == 1
    assert labels_found(labels(found_label_score=0.7))["rows_with_wrong_columns"] == 1


def test_a_perplexity_that_is_not_that_of_its_likelihood_is_counted() -> None:
    row = {
        "found_logprob_sum": -4.0,
        "found_num_scored_tokens": 4,
        "found_perplexity": 2.718281828,
        "found_error": None,
    }
    nothing = {"found_logprob_sum": 0.0, "found_num_scored_tokens": 0, "found_perplexity": None, "found_error": None}
    assert scores_found(pa.Table.from_pylist([row, nothing])) == {"rows_with_wrong_columns": 0, "perplexity": 2.72}
    assert scores_found(pa.Table.from_pylist([{**row, "found_perplexity": 2.8}]))["rows_with_wrong_columns"] == 1


def test_vectors_of_another_length_are_counted() -> None:
    column = pa.array([[0.6, 0.8], None, [1.0, 1.0]], pa.list_(pa.float32(), 2))
    assert vectors_found(pa.table({"found_embedding": column})) == {"rows_with_wrong_columns": 1, "width": 2}


def test_a_report_has_rows_failures_and_speed() -> None:
    report = report_of("classify", labels(), {"seconds": 4.0, "backend": {"dtype": "float32"}})
    assert (report["rows"], report["failed_rows"], report["rows_per_s"], report["dtype"]) == (2, 1, 0.5, "float32")


@pytest.mark.parametrize("kind", TASKS)
def test_every_job_is_a_job(tmp_path: Path, kind: str) -> None:
    job = Job.model_validate(job_of(kind, tmp_path / "a.parquet", tmp_path / "out", "demo", 5))
    assert job.task.kind == kind and job.input.limit == 5
