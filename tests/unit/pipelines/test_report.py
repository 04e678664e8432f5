import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gptj_batch.records.output import OutputFolder
from gptj_batch.records.write import write_unit
from pipelines.config import Job, load_job
from pipelines.destination import claim_output
from pipelines.prepare import Run, prepare
from pipelines.progress import Counts
from pipelines.report import MAX_REASONS, Report, count_errors, read_report, write_report

MakeJob = Callable[..., Job]
COUNTS = Counts(units=4, rows=100, failed=2, truncated=3, duplicates=1234, prompt_tokens=5000, generated_tokens=800)


def finished(job: Job, errors: Sequence[str | None]) -> Run:
    """A run whose units are there, with an error of each row."""
    run = prepare(job)
    claim_output(run)
    for index in range(run.plan.num_units):
        unit = run.plan.unit(index)
        start = index * run.plan.max_rows_per_unit
        column = pa.array(errors[start : start + unit.num_rows], pa.string())
        write_unit(pa.table({run.error_column: column}), job.output.path, index)
    return run


def failing(*reasons: str) -> list[str | None]:
    return [*reasons, *[None] * (100 - len(reasons))]


def report_of(run: Run, counts: Counts = COUNTS, seconds: float = 10.0) -> Report:
    return Report.of_units(run, counts, seconds, 0.0, {"kind": "fake"})


@pytest.fixture
def report(make_job: MakeJob) -> Report:
    return report_of(finished(make_job(), failing("too long", "is null")))


def test_errors_are_counted_in_the_files_and_not_in_what_was_said(make_job: MakeJob) -> None:
    run = finished(make_job(), failing("a", "b", "a"))
    assert count_errors(run) == {"a": 2, "b": 1}
    made = report_of(run, replace(COUNTS, failed=99))
    assert (made.rows, made.done, made.failed) == (100, 97, 3)


def test_errors_stand_behind_the_prefix(make_job: MakeJob) -> None:
    assert count_errors(finished(make_job(output={"prefix": "g."}), failing("a"))) == {"a": 1}


@pytest.mark.parametrize(("limit", "is_good"), [(0.02, True), (0.01, False), (2, True), (1, False), (0, False)])
def test_a_run_is_good_within_its_limit(make_job: MakeJob, limit: float, is_good: bool) -> None:
    made = report_of(finished(make_job(errors={"max_failed_rows": limit}), failing("a", "b")))
    assert made.is_good is is_good
    assert ("exit code 3" in made.summary()) is not is_good


def test_a_run_that_left_out_files_is_not_good(make_job: MakeJob, records: Path) -> None:
    (records / "b.parquet").write_bytes(b"nothing")
    made = report_of(finished(make_job(errors={"bad_files": "skip"}), failing()))
    assert not made.is_good and made.failed == 0
    assert f"skipped, could not be read: {records}/b.parquet" in made.summary().splitlines()


def test_the_summary_says_what_was_done_and_why_rows_failed(report: Report) -> None:
    assert report.summary().splitlines() == [
        "100 rows: 98 done, 2 failed; 100 in this run, in 10 s (10.0 rows/s, 580 tokens/s)",
        "3 prompts were cut to fit the context (task.truncate)",
        "1,234 duplicates were computed once, with another row (task.deduplicate)",
        "  1 x too long",
        "  1 x is null",
        "2 of 100 rows failed, more than errors.max_failed_rows (0.01) allows: exit code 3",
        f"output: {report.output}",
    ]


def test_the_summary_of_a_good_run_is_short(make_job: MakeJob) -> None:
    made = report_of(finished(make_job(), failing()), replace(COUNTS, truncated=0, duplicates=0))
    assert made.summary().splitlines() == [
        "100 rows: 100 done, 0 failed; 100 in this run, in 10 s (10.0 rows/s, 580 tokens/s)",
        f"output: {made.output}",
    ]


def test_a_run_that_had_nothing_to_do_names_no_rates(make_job: MakeJob) -> None:
    made = report_of(finished(make_job(), failing()), Counts(), 0.0)
    assert made.summary().splitlines()[0] == "100 rows: 100 done, 0 failed"
    assert made.tokens_per_s == 0.0


def test_no_time_at_all_is_no_division_by_zero(make_job: MakeJob) -> None:
    assert "rows/s" in report_of(finished(make_job(), failing()), COUNTS, 0.0).summary()


def test_the_commonest_errors_come_first_and_only_a_few(make_job: MakeJob) -> None:
    reasons = [f"reason {number}" for number in range(8) for _ in range(number + 1)]
    lines = report_of(finished(make_job(), failing(*reasons))).summary().splitlines()
    shown = [line for line in lines if line.startswith("  ")]
    assert shown == [f"  {number + 1} x reason {number}" for number in (7, 6, 5, 4, 3)]


def test_reasons_that_are_all_different_do_not_fill_the_report(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.report.MAX_REASONS", 10)
    made = report_of(
        finished(make_job(), failing(*[f"the prompt has {row} tokens" for row in range(60)], "often", "often"))
    )
    assert (len(made.errors), made.failed) == (10, 62)
    assert made.errors["often"] == 2
    assert MAX_REASONS == 100


def test_what_was_written_is_read_again(make_job: MakeJob, report: Report) -> None:
    run = prepare(make_job())
    write_report(run, report)
    assert read_report(run.job.output.path) == report
    private = OutputFolder.at(run.job.output.path).private
    assert load_job(private / "config.yaml") == run.job
    facts: dict[str, Any] = json.loads((private / "run.json").read_text())
    assert facts["versions"]["gptj-batch"] and facts["started"] == "1970-01-01T00:00:00Z"
    assert facts == json.loads(json.dumps(asdict(report)))


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"name": "x"}', '{"nope": 1}', "null"])
def test_a_report_that_cannot_be_read_is_none(tmp_path: Path, content: str | None) -> None:
    private = OutputFolder.at(tmp_path).private
    private.mkdir()
    if content is not None:
        (private / "run.json").write_text(content)
    assert read_report(str(tmp_path)) is None


def test_text_of_a_record_is_in_no_report(make_job: MakeJob, report: Report) -> None:
    assert "text 1" not in json.dumps(asdict(report)) + report.summary()
