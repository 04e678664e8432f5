from pathlib import Path

import pyarrow as pa
import pytest

from jobs.bench.squad import job_of, offset_mismatches, report_of
from jobs.bench.squad_score import exact, f1, mean_scores, normalized
from pipelines.config import Job


def test_case_punctuation_articles_and_spaces_do_not_count() -> None:
    assert normalized("  The  Cat's-eye, an  A.B. ") == "catseye ab"
    assert exact("the Vistula.", "Vistula") == 1.0 and exact("Vistula River", "Vistula") == 0.0


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("Vistula River", "Vistula", 2 / 3), ("a b b", "b b c", 1.0 * 2 * 2 / 5), ("x", "y", 0.0), ("", "", 1.0),
        ("", "y", 0.0), ("the", "", 1.0),
    ],
)  # fmt: skip
def test_f1_counts_common_words(answer: str, right: str, expected: float) -> None:
    assert f1(answer, right) == pytest.approx(expected)


def test_the_best_of_the_answers_given_counts_and_none_is_right_where_there_is_none() -> None:
    scores = mean_scores([("Rome", ["Paris", "rome"]), ("", []), ("Rome", []), ("", ["Rome"])])
    assert (scores["questions"], scores["questions_with_an_answer"], scores["answered_with_none"]) == (4, 2, 2)
    assert (scores["exact"], scores["exact_with_an_answer"], scores["f1_without_an_answer"]) == (50.0, 50.0, 50.0)
    assert "exact" not in mean_scores([])


def rows() -> list[dict[str, object]]:
    good = {"text": "b", "start": 1, "end": 2, "score": 0.5}
    none = {"text": None, "start": None, "end": None, "score": 0.5}
    return [
        {"context": "abc", "is_impossible": False, "answers": [{"text": "B"}], "found_answer_text": "b",
         "found_answers": [good, none], "found_error": None},
        {"context": "abc", "is_impossible": True, "answers": [], "found_answer_text": None, "found_answers": None,
         "found_error": "no"},
    ]  # fmt: skip


def test_offsets_that_are_wrong_are_counted() -> None:
    assert offset_mismatches(rows()) == 0
    wrong = rows()
    wrong[0]["found_answers"][0]["start"] = 0  # type: ignore[index]
    wrong[0]["found_answers"][1]["start"] = 0  # type: ignore[index]
    assert offset_mismatches(wrong) == 2


def test_a_report_has_failures_speed_and_scores() -> None:
    report = report_of(pa.Table.from_pylist(rows()), {"seconds": 4.0})
    assert (report["rows"], report["failed_rows"], report["answers_checked"], report["rows_per_s"]) == (2, 1, 2, 0.5)
    assert report["exact"] == 100.0


def test_the_job_is_a_job(tmp_path: Path) -> None:
    job = Job.model_validate(job_of(tmp_path / "a.parquet", tmp_path / "out", "demo", "pipeline", None))
    assert job.task.kind == "extract" and job.output.prefix == "found_"
