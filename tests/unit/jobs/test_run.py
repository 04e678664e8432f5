"""Whole runs, with the stages called one after the other where Ray Data would call them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from whole_runs import TEXTS, Spine, job, report, write

import jobs.run
from gptj_batch.errors import BackendError, ConfigError, OutputError, TooManyFailedError
from jobs.report import remake_report
from jobs.run import run_job
from pipelines.config import check_job
from pipelines.job_file import JobFile


def test_a_run_leaves_parts_a_report_and_success(
    folder: Path, model_folder: Path, spine: Spine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(job(folder, model_folder)) == 0
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"part-00000.parquet", "_SUCCESS", "_gptj_batch"}
    private = {path.name for path in (folder / "out" / "_gptj_batch").iterdir()}
    assert private == {"config.yaml", "run.json", "report.html", "plan.json"}
    assert pq.read_table(folder / "out").column("text").to_pylist() == TEXTS
    captured = capsys.readouterr()
    assert captured.out.startswith("100 rows: 100 done, 0 failed; 100 in this run")
    assert "test-job: 100 rows of 1 files, in 4 units, model" in captured.err
    assert (report(folder)["rows"], report(folder)["backend"]["kind"]) == (100, "fake")


def test_units_that_were_not_published_are_no_complete_output(
    folder: Path, model_folder: Path, spine: Spine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipelines.finish.publish", die)
        run_job(job(folder, model_folder))
    capsys.readouterr()
    assert remake_report(str(folder / "out")) == 1
    assert capsys.readouterr().out.startswith("not complete: ")
    assert run_job(job(folder, model_folder)) == 0
    assert remake_report(str(folder / "out")) == 0


def test_a_complete_output_is_told_about_and_left_alone(
    folder: Path, model_folder: Path, spine: Spine, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(job(folder, model_folder))
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    capsys.readouterr()
    assert run_job(job(folder, model_folder)) == 0
    captured = capsys.readouterr()
    assert captured.err == f"Nothing to do: {folder / 'out'} is complete.\n"
    assert captured.out.startswith("100 rows: 100 done, 0 failed")
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    assert spine.num_units == 4


def test_an_interrupted_run_goes_on_where_it_ended_with_the_same_result(
    folder: Path, model_folder: Path, spine: Spine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spine.units_before_end = 3
    with pytest.raises(BackendError):
        run_job(job(folder, model_folder))
    assert not (folder / "out" / "_SUCCESS").exists() and not list((folder / "out").glob("part-*"))
    spine.units_before_end = None
    assert run_job(job(folder, model_folder)) == 0
    assert spine.num_units == 3 + 1
    assert "4 rows of 1 files (96 were done before), in 1 units" in capsys.readouterr().err
    assert run_job(job(folder, model_folder, output={"path": str(tmp_path / "whole")})) == 0
    assert pq.read_table(folder / "out").equals(pq.read_table(tmp_path / "whole"))
    assert (report(folder)["rows"], report(folder)["rows_this_run"]) == (100, 4)


def test_too_many_failed_rows_are_3_and_the_output_is_complete(folder: Path, model_folder: Path, spine: Spine) -> None:
    write(folder, [*TEXTS[:98], None, None])
    assert run_job(job(folder, model_folder)) == 3
    assert pq.read_table(folder / "out").num_rows == 100 and (folder / "out" / "_SUCCESS").exists()
    assert run_job(job(folder, model_folder)) == 3, "asking again gives the same answer"
    assert run_job(job(folder, model_folder, errors={"max_failed_rows": 2})) == 0, "by the limit of who asks"
    assert run_job(job(folder, model_folder, errors={"max_failed_rows": 2}, output={"on_exists": "overwrite"})) == 0


FAILING: list[str | None] = [None] * 100


def test_a_run_that_only_fails_is_not_walked_to_its_end_by_starting_it_again(
    folder: Path, model_folder: Path, spine: Spine
) -> None:
    write(folder, FAILING)
    watched = job(folder, model_folder, errors={"stop_after": 90})
    spine.units_before_end = 3
    with pytest.raises(BackendError):
        run_job(watched)
    spine.units_before_end = None
    for _ in range(2):
        with pytest.raises(TooManyFailedError, match=r"96 of the first 96 rows failed.*output\.on_exists=overwrite"):
            run_job(watched)
    assert spine.num_units == 3 and report(folder)["exit_code"] == 3
    assert run_job(job(folder, model_folder, errors={"stop_after": None})) == 3, "which goes on"
    assert spine.num_units == 4


def test_an_overwrite_that_was_stopped_for_its_failures_begins_anew_when_it_is_asked_for_again(
    folder: Path, model_folder: Path, spine: Spine
) -> None:
    run_job(job(folder, model_folder))
    write(folder, FAILING)
    over = job(folder, model_folder, errors={"stop_after": 90}, output={"on_exists": "overwrite"})
    spine.units_before_end = 3
    with pytest.raises(BackendError):
        run_job(over)
    spine.units_before_end = None
    with pytest.raises(TooManyFailedError):
        run_job(over)
    assert spine.num_units == 4 + 3
    assert run_job(over) == 3
    assert spine.num_units == 4 + 3 + 4


def test_an_interrupted_overwrite_leaves_the_old_output_and_goes_on_beside_it(
    folder: Path, model_folder: Path, spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(job(folder, model_folder))
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    new = job(folder, model_folder, output={"on_exists": "overwrite", "prefix": "new_", "format": "arrow"})
    spine.units_before_end = 3
    with pytest.raises(BackendError):
        run_job(new)
    spine.units_before_end = None
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="as if"):
        patch.setattr("pipelines.finish.change_places", _crash)
        run_job(new)
    assert spine.num_units == 4 + 3 + 1
    assert before == {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    assert run_job(new) == 0
    assert spine.num_units == 4 + 3 + 1, "all was done, but for the exchange"
    (part,) = (folder / "out").glob("part-*")
    assert part.name == "part-00000-1.arrow"
    assert "new_label" in pa.ipc.open_file(part).schema.names
    assert (report(folder)["rows"], report(folder)["output"]) == (100, str(folder / "out"))
    assert (folder / "out" / "_gptj_batch" / "report.html").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["in", "out"]


def test_overwriting_again_does_everything_again(folder: Path, model_folder: Path, spine: Spine) -> None:
    new = job(folder, model_folder, output={"on_exists": "overwrite"})
    for number, name in enumerate(("part-00000.parquet", "part-00000-1.parquet", "part-00000-2.parquet"), 1):
        assert run_job(new) == 0
        assert spine.num_units == 4 * number
        assert [part.name for part in (folder / "out").glob("part-*")] == [name]
    assert run_job(job(folder, model_folder)) == 0 and spine.num_units == 12, "which then is complete"


def _crash(*arguments: Any) -> None:
    raise OutputError("as if the machine had gone")


def test_a_bad_file_that_was_left_out_is_3_and_named(
    folder: Path, model_folder: Path, spine: Spine, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in" / "b.parquet").write_bytes(b"no Parquet")
    assert run_job(job(folder, model_folder, errors={"bad_files": "skip"})) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith(f"skipped: {folder}/in/b.parquet (10 bytes): ")
    assert f"skipped, could not be read: {folder}/in/b.parquet" in captured.out


def test_an_input_without_rows_needs_no_ray(folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.run, "connected", None)
    write(folder, [])
    assert run_job(job(folder, model_folder)) == 0
    assert pq.read_table(folder / "out").column_names == ["text", "label", "label_score", "label_scores", "error"]
    assert report(folder)["rows"] == 0
    assert run_job(job(folder, model_folder)) == 0


def test_units_that_were_not_written_are_no_success(
    folder: Path, model_folder: Path, spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.run, "_run_units", lambda run, pending, progress, *_: spine(run, pending[1:], progress))
    with pytest.raises(OutputError, match=r"1 of 4 units were not written: unit \d \(.*run the same command again"):
        run_job(job(folder, model_folder))
    assert not (folder / "out" / "_SUCCESS").exists()


def test_an_output_of_another_configuration_is_refused_before_anything_runs(
    folder: Path, model_folder: Path, spine: Spine
) -> None:
    run_job(job(folder, model_folder))
    with pytest.raises(ConfigError, match="was made by another configuration"):
        run_job(job(folder, model_folder, task={"likelihood": "mean"}))
    assert spine.num_units == 4


def test_the_prefix_is_in_the_report_too(folder: Path, model_folder: Path, spine: Spine) -> None:
    write(folder, [*TEXTS, None])
    run_job(job(folder, model_folder, output={"prefix": "g_"}, input={"limit": 101}))
    assert report(folder)["failed"] == 1
    assert "<h2>g_label</h2>" in (folder / "out" / "_gptj_batch" / "report.html").read_text()


def test_the_report_of_a_run_that_failed_says_why_and_a_finished_rerun_replaces_it(
    folder: Path, model_folder: Path, spine: Spine
) -> None:
    spine.units_before_end = 2
    with pytest.raises(BackendError):
        run_job(job(folder, model_folder))
    failed = report(folder)
    assert (failed["exit_code"], failed["reason"]) == (1, "the machine is gone")
    assert (failed["rows"], failed["units"], failed["units_done"]) == (100, 4, 2)
    spine.units_before_end = None
    assert run_job(job(folder, model_folder)) == 0
    assert (report(folder)["exit_code"], report(folder)["reason"]) == (0, "complete")


def test_a_refused_configuration_leaves_another_runs_report_alone(
    folder: Path, model_folder: Path, spine: Spine
) -> None:
    run_job(job(folder, model_folder))
    before = report(folder)
    with pytest.raises(ConfigError):
        run_job(job(folder, model_folder, task={"prompt": "{{ text }} is about"}))
    assert report(folder) == before


def test_the_page_of_a_small_run_shows_no_generated_text(folder: Path, model_folder: Path, spine: Spine) -> None:
    task = {"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 4}
    few = job(folder, model_folder, input={"limit": 3})
    values = {**few.model_dump(mode="json"), "task": task}
    assert run_job(check_job(JobFile("job.yaml", values))) == 0
    page = (folder / "out" / "_gptj_batch" / "report.html").read_text()
    assert "finish_reason" in page
    assert "generated_text" not in page


def test_what_a_local_cluster_cannot_compute_in_is_refused_before_anything_is_begun(
    folder: Path, model_folder: Path, spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(job: Any) -> None:
        raise ConfigError("model.dtype: not here")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(jobs.run, "check_here", refuse)
    with pytest.raises(ConfigError, match="not here"):
        run_job(job(folder, model_folder))
    assert spine.num_units == 0 and not (folder / "out").exists()
    assert run_job(job(folder, model_folder), address="127.0.0.1:6379") == 0
