"""Incremental runs, with the stages called one after the other where Ray Data would call them."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from whole_runs import Spine, job

import jobs.incremental
import jobs.run
from gptj_batch.errors import BackendError, ConfigError, InputError, OutputInUseError, TooManyFailedError
from gptj_batch.records.lease import Lease, take_lease
from jobs.cli import main
from jobs.failures import Stopped
from jobs.run import run_job
from pipelines.config import Job
from pipelines.ledger import read_ledger

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of the input with some rows; every text is another one unless `text` says what they are."""

    def write(name: str, rows: int = 40, text: str | None = None) -> Path:
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        texts = [f"{text or name} {row}" for row in range(rows)]
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), file)
        return file

    return write


in_both_modes = pytest.mark.parametrize("mode", ["partition", "append"])


@pytest.fixture
def mode() -> str:
    return "partition"


@pytest.fixture
def scheduled(tmp_path: Path, model_folder: Path, mode: str) -> Callable[..., Job]:
    def make(**blocks: dict[str, Any]) -> Job:
        blocks["input"] = {"incremental": True, **blocks.get("input", {})}
        blocks["output"] = {"incremental": mode, **blocks.get("output", {})}
        return job(tmp_path, model_folder, **blocks)

    return make


def texts(folder: Path) -> list[str]:
    """What a reader of the whole output finds, by the files' names."""
    table = ds.dataset(folder / "out", format="parquet", partitioning="hive").to_table()
    return sorted(str(text).rpartition(" ")[0] for text in table.column("text").to_pylist())


def rows(**files: int) -> list[str]:
    return sorted(f"{name}.parquet" for name, count in files.items() for _ in range(count))


def runs(folder: Path) -> list[list[str]]:
    """The names of the files that each run did."""
    ledger = read_ledger(folder / "out")
    return [sorted(Path(file.path).name for file in entry.files) for entry in ledger.entries]


def touch(file: Path) -> None:
    """Let a file be a second younger."""
    there = file.stat()
    os.utime(file, ns=(there.st_atime_ns, there.st_mtime_ns + 10**9))


@in_both_modes
def test_only_new_files_are_done_and_all_rows_are_there_once(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.parquet"), write("b.parquet", 10)
    assert run_job(scheduled()) == 0
    assert "2 new" in capsys.readouterr().err
    write("c.parquet", 33)
    units = spine.num_units
    assert run_job(scheduled()) == 0
    assert spine.num_units - units == 2, "of 33 rows, and none of the others"
    captured = capsys.readouterr()
    assert "1 new, 2 unchanged" in captured.err and captured.out.startswith("33 rows: 33 done, 0 failed")
    assert runs(tmp_path) == [["a.parquet", "b.parquet"], ["c.parquet"]]
    assert texts(tmp_path) == rows(a=40, b=10, c=33)


@in_both_modes
def test_parts_lie_where_the_setting_says(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], mode: str
) -> None:
    for name in ("a.parquet", "b.parquet"):
        write(name)
        run_job(scheduled())
    names = [entry.run for entry in read_ledger(tmp_path / "out").entries]
    shown = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("part-*.parquet"))
    if mode == "partition":
        assert shown == [f"run={name}/part-00000.parquet" for name in names]
        assert (tmp_path / "out" / f"run={names[1]}" / "_SUCCESS").exists()
        table = ds.dataset(tmp_path / "out", format="parquet", partitioning="hive").to_table()
        assert sorted(set(table.column("run").to_pylist())) == names
    else:
        assert shown == [f"part-{name}-00000.parquet" for name in names]
    private = tmp_path / "out" / "_gptj_batch"
    said = json.loads((private / "run.json").read_text())
    assert (said["rows"], said["incremental"]["run"]) == (40, names[1])
    assert "run" in (private / "report.html").read_text()
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_nothing_new_reads_no_file_and_ends_with_0(
    tmp_path: Path,
    spine: Spine,
    write: Write,
    scheduled: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("a.parquet")
    run_job(scheduled())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(jobs.incremental, "complete", None)
    monkeypatch.setattr(jobs.incremental, "hash_files", lambda paths: dict(zip(paths, [], strict=True)))
    assert run_job(scheduled()) == 0
    assert "Nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


@in_both_modes
def test_a_changed_file_is_done_again_and_takes_the_place_of_its_old_rows(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet"), write("b.parquet", 7)
    run_job(scheduled())
    write("b.parquet", 9)
    assert run_job(scheduled()) == 0
    assert texts(tmp_path) == rows(a=40, b=9)
    first, second = read_ledger(tmp_path / "out").entries
    assert [(Path(file.path).name, file.run) for file in second.replaced] == [("b.parquet", first.run)]


def test_a_file_that_was_only_touched_is_not_done_again(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    touch(write("a.parquet"))
    run_job(scheduled())
    units = spine.num_units
    touch(tmp_path / "in" / "a.parquet")
    assert run_job(scheduled()) == 0 and "1 touched but the same" in capsys.readouterr().err
    assert run_job(scheduled()) == 0 and "1 unchanged" in capsys.readouterr().err, "which is remembered"
    assert spine.num_units == units and runs(tmp_path) == [["a.parquet"], []]


def test_a_change_that_keeps_size_and_footer_is_seen(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    for name in ("old", "new"):
        table = pa.table({"text": ["aaa 0", f"{name} 0", "zzz 0"]})
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "in" / "a.parquet", compression="none", use_dictionary=False)
        touch(tmp_path / "in" / "a.parquet")
        run_job(scheduled())
    assert texts(tmp_path) == ["aaa", "new", "zzz"]


def test_a_late_file_with_an_old_time_is_new(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("b.parquet")
    run_job(scheduled())
    os.utime(write("a.parquet", 5), (0, 10**9))
    run_job(scheduled())
    assert texts(tmp_path) == rows(a=5, b=40)


def test_a_missed_run_is_made_up_for_by_the_next(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("monday.parquet", 3)
    run_job(scheduled())
    write("tuesday.parquet", 4), write("wednesday.parquet", 5)
    run_job(scheduled())
    assert texts(tmp_path) == rows(monday=3, tuesday=4, wednesday=5) and len(runs(tmp_path)) == 2


def test_a_renamed_file_is_not_done_again(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.parquet"), write("b.parquet")
    run_job(scheduled())
    units = spine.num_units
    (tmp_path / "in" / "a.parquet").rename(tmp_path / "in" / "z.parquet")
    assert run_job(scheduled()) == 0 and "1 renamed" in capsys.readouterr().err
    assert run_job(scheduled()) == 0 and "2 unchanged" in capsys.readouterr().err
    assert spine.num_units == units
    assert {Path(path).name for path in read_ledger(tmp_path / "out").files} == {"z.parquet", "b.parquet"}


@in_both_modes
def test_rotated_files_are_known_by_their_content_and_the_one_that_fell_out_is_replaced(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("log.parquet", 3, "first"), write("log-1.parquet", 4, "older"), write("log-2.parquet", 5, "oldest")
    run_job(scheduled())
    folder = tmp_path / "in"
    (folder / "log-1.parquet").rename(folder / "log-2.parquet")
    (folder / "log.parquet").rename(folder / "log-1.parquet")
    write("log.parquet", 6, "second")
    units = spine.num_units
    assert run_job(scheduled()) == 0
    assert spine.num_units == units + 1
    assert texts(tmp_path) == sorted(["first"] * 3 + ["older"] * 4 + ["second"] * 6)


def test_rows_of_a_deleted_file_stay_and_it_may_come_back(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    file, elsewhere = write("a.parquet"), tmp_path / "archive.parquet"
    write("b.parquet")
    run_job(scheduled())
    file.rename(elsewhere)
    units = spine.num_units
    assert run_job(scheduled()) == 0 and "1 deleted (their rows stay)" in capsys.readouterr().err
    assert read_ledger(tmp_path / "out").gone == {str(file)}
    elsewhere.rename(file)
    assert run_job(scheduled()) == 0
    assert read_ledger(tmp_path / "out").gone == set()
    assert spine.num_units == units and texts(tmp_path) == rows(a=40, b=40)


@pytest.mark.parametrize("path", ["", "/*.parquet", "/**/*.parquet"])
@pytest.mark.parametrize("left", ["nothing", "a README"])
def test_an_inbox_that_is_empty_today_is_nothing_to_do_and_its_files_may_come_back(
    tmp_path: Path,
    spine: Spine,
    write: Write,
    scheduled: Callable[..., Job],
    capsys: pytest.CaptureFixture[str],
    path: str,
    left: str,
) -> None:
    file, inbox = write("a.parquet"), scheduled(input={"path": f"{tmp_path}/in{path}"})
    run_job(inbox)
    file.rename(tmp_path / "archived")
    if left == "a README":
        (tmp_path / "in" / "README").touch()
    assert run_job(inbox) == 0 and "1 deleted (their rows stay)" in capsys.readouterr().err
    assert run_job(inbox) == 0 and "Nothing to do" in capsys.readouterr().err
    assert read_ledger(tmp_path / "out").gone == {str(file)} and runs(tmp_path) == [["a.parquet"], []]
    (tmp_path / "archived").rename(file)
    write("b.parquet", 3)
    assert run_job(inbox) == 0
    assert read_ledger(tmp_path / "out").gone == set() and texts(tmp_path) == rows(a=40, b=3)


def test_of_several_paths_one_may_be_empty_today(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("one/a.parquet"), write("two/b.parquet", 3)
    both = scheduled(input={"path": [f"{tmp_path}/in/one", f"{tmp_path}/in/two/*.parquet"]})
    run_job(both)
    (tmp_path / "in" / "two" / "b.parquet").unlink()
    write("one/c.parquet", 2)
    assert run_job(both) == 0
    assert texts(tmp_path) == sorted(["one/a.parquet"] * 40 + ["two/b.parquet"] * 3 + ["one/c.parquet"] * 2)


@pytest.mark.parametrize("path", ["in/*.parquet", "in", "in/a.parquet"])
def test_a_folder_or_named_file_that_is_not_there_is_an_error_at_any_time(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], path: str
) -> None:
    write("a.parquet")
    job = scheduled(input={"path": str(tmp_path / path)})
    run_job(job)
    (tmp_path / "in" / "a.parquet").unlink()
    if path != "in/a.parquet":
        (tmp_path / "in").rmdir()
    with pytest.raises(InputError, match="nothing matches"):
        run_job(job)
    assert read_ledger(tmp_path / "out").gone == set()


def test_an_inbox_that_was_always_empty_is_an_error(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="nothing matches"):
        run_job(scheduled())


def test_a_copy_is_a_file_of_its_own(tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]) -> None:
    shutil.copyfile(write("a.parquet"), tmp_path / "in" / "copy.parquet")
    run_job(scheduled())
    assert texts(tmp_path) == rows(a=80)


@in_both_modes
def test_an_interrupted_run_goes_on_and_then_does_what_came_since(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.parquet", 100)
    spine.units_before_end = 3
    with pytest.raises(BackendError):
        run_job(scheduled())
    (begun,) = (tmp_path / "out" / "_gptj_batch" / "runs").iterdir()
    failed = json.loads((tmp_path / "out" / "_gptj_batch" / "run.json").read_text())
    assert (failed["exit_code"], failed["units_done"]) == (1, 3)
    assert not list((tmp_path / "out").glob("run=*")) and not list((tmp_path / "out").glob("part-*"))
    spine.units_before_end = None
    write("b.parquet", 5)
    assert run_job(scheduled()) == 0
    assert spine.num_units == 4 + 1, "each unit once"
    assert f"run {begun.name} goes on" in capsys.readouterr().err
    assert runs(tmp_path) == [["a.parquet"], ["b.parquet"]]
    assert read_ledger(tmp_path / "out").entries[0].run == begun.name
    assert texts(tmp_path) == rows(a=100, b=5)


def test_a_signal_is_in_the_outputs_own_report_before_ray_is_shut_down(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.parquet")
    run_job(scheduled())
    private, said = tmp_path / "out" / "_gptj_batch", []

    def stop(*_: Any) -> dict[str, Any]:
        raise Stopped("SIGTERM", 143)

    @contextmanager
    def connected(address: str | None) -> Iterator[None]:
        try:
            yield
        finally:  # here the shutdown takes longer than a scheduler waits
            said.append(json.loads((private / "run.json").read_text()))

    monkeypatch.setattr(jobs.run, "_run_units", stop)
    monkeypatch.setattr(jobs.run, "connected", connected)
    write("b.parquet")
    with pytest.raises(Stopped):
        run_job(scheduled())
    assert [(each["exit_code"], each["reason"]) for each in said] == [(143, "stopped by SIGTERM")]
    assert (said[0]["output"], said[0]["units"]) == (str(tmp_path / "out"), 2)


def test_an_interrupted_run_whose_file_changed_is_begun_anew(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.parquet", 100)
    spine.units_before_end = 3
    with pytest.raises(BackendError):
        run_job(scheduled())
    spine.units_before_end = None
    write("a.parquet", 50)
    assert run_job(scheduled()) == 0
    assert "begun anew" in capsys.readouterr().err
    assert texts(tmp_path) == rows(a=50) and len(runs(tmp_path)) == 1


def test_a_failed_run_followed_by_a_good_one_leaves_every_row_once(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    for number in range(3):
        write(f"{number}.parquet", 40)
        spine.units_before_end = 0
        with pytest.raises(BackendError):
            run_job(scheduled())
        spine.units_before_end = None
        assert run_job(scheduled()) == 0
    assert sorted(texts(tmp_path)) == sorted(f"{number}.parquet" for number in range(3) for _ in range(40))


def test_other_settings_stop_the_run_and_say_what_changed(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet")
    run_job(scheduled())
    with pytest.raises(ConfigError, match=r'task\.prompt: "\{\{ text \}\}" -> "Is it.*(\n|.)*--rescore new'):
        run_job(scheduled(task={"prompt": "Is it {{ text }}"}))
    assert run_job(scheduled(errors={"max_failed_rows": 1})) == 0, "which changes no result"


def test_rescoring_new_files_keeps_the_results_that_are_there(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet")
    run_job(scheduled())
    other = scheduled(task={"prompt": "Is it {{ text }}"})
    assert run_job(other, rescore="new") == 0, "accepted, though nothing is new"
    write("b.parquet")
    assert run_job(other) == 0
    ledger = read_ledger(tmp_path / "out")
    prompts = {Path(path).name: file.run for path, file in ledger.files.items()}
    made_by = {entry.run: entry.settings["task"]["prompt"] for entry in ledger.entries}
    assert made_by[prompts["a.parquet"]] == "{{ text }}" and made_by[prompts["b.parquet"]] == "Is it {{ text }}"
    assert texts(tmp_path) == rows(a=40, b=40)
    with pytest.raises(ConfigError):
        run_job(scheduled())


@in_both_modes
def test_rescoring_all_does_every_file_again_and_replaces_the_old_rows(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet"), write("b.parquet")
    run_job(scheduled())
    (tmp_path / "in" / "a.parquet").rename(tmp_path / "in" / "c.parquet")
    other = scheduled(task={"prompt": "Is it {{ text }}"})
    assert run_job(other, rescore="all") == 0
    assert texts(tmp_path) == rows(a=40, b=40)
    assert {file.run for file in read_ledger(tmp_path / "out").files.values()} == {
        read_ledger(tmp_path / "out").entries[-1].run
    }
    assert run_job(other) == 0 and len(runs(tmp_path)) == 2


def interrupt_rescoring(spine: Spine, scheduled: Callable[..., Job]) -> Job:
    """Do the input's files, then some units of them again by another prompt; return the job that has that."""
    run_job(scheduled())
    other = scheduled(task={"prompt": "Is it {{ text }}"})
    spine.units_before_end = 2
    with pytest.raises(BackendError):
        run_job(other, rescore="all")
    spine.units_before_end = None
    return other


def test_an_interrupted_rescoring_goes_on_without_being_asked_again(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet", 100)
    other = interrupt_rescoring(spine, scheduled)
    with pytest.raises(ConfigError, match="a run that was interrupted"):
        run_job(scheduled())
    assert run_job(other) == 0
    assert spine.num_units == 8 and texts(tmp_path) == rows(a=100)


@pytest.fixture
def interrupted_rescoring(tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]) -> Job:
    """The job whose `--rescore all` was interrupted, of the files a and b."""
    write("a.parquet"), write("b.parquet")
    return interrupt_rescoring(spine, scheduled)


@pytest.mark.parametrize("change", ["touched", "removed"])
def test_an_interrupted_rescoring_whose_file_is_another_or_gone_is_begun_anew_as_a_rescoring(
    tmp_path: Path, interrupted_rescoring: Job, change: str
) -> None:
    if change == "touched":
        touch(tmp_path / "in" / "a.parquet")
    else:
        (tmp_path / "in" / "a.parquet").unlink()
    assert run_job(interrupted_rescoring) == 0
    last = read_ledger(tmp_path / "out").entries[-1]
    assert last.rescore == "all" and runs(tmp_path)[-1][-1] == "b.parquet"
    assert texts(tmp_path) == rows(a=40, b=40)


def test_a_rescoring_that_cannot_be_begun_anew_today_is_tomorrow(
    tmp_path: Path, interrupted_rescoring: Job, write: Write
) -> None:
    (tmp_path / "in" / "a.parquet").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"a\.parquet"):
        run_job(interrupted_rescoring)
    write("a.parquet", 7)
    assert run_job(interrupted_rescoring) == 0
    assert read_ledger(tmp_path / "out").entries[-1].rescore == "all" and texts(tmp_path) == rows(a=7, b=40)


def test_a_refusal_leaves_what_an_interrupted_run_did(
    tmp_path: Path, interrupted_rescoring: Job, scheduled: Callable[..., Job]
) -> None:
    begun = sorted((tmp_path / "out" / "_gptj_batch" / "runs").rglob("unit-*"))
    other_form = scheduled(task={"prompt": "Is it {{ text }}"}, output={"format": "jsonl"})
    with pytest.raises(ConfigError, match=r"output.format"):
        run_job(other_form, rescore="new")
    assert len(begun) == 2 and sorted((tmp_path / "out" / "_gptj_batch" / "runs").rglob("unit-*")) == begun


def test_what_is_said_now_wins_over_what_was_said_of_an_interrupted_rescoring(
    tmp_path: Path, interrupted_rescoring: Job, write: Write
) -> None:
    write("c.parquet", 3)
    assert run_job(interrupted_rescoring, rescore="new") == 0
    assert runs(tmp_path)[-1] == ["c.parquet"]
    assert not list((tmp_path / "out" / "_gptj_batch" / "runs").iterdir())


def test_a_run_that_was_stopped_for_its_failures_is_dropped_when_somebody_says_so(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    pq.write_table(pa.table({"text": pa.array([None] * 100, pa.string())}), write("a.parquet"))
    watched, done = scheduled(errors={"stop_after": 90}), 0
    for said in (None, "new", "all"):  # as what the run was begun that is stopped
        spine.units_before_end = 3
        with pytest.raises(BackendError):
            run_job(watched, rescore=said)
        spine.units_before_end = None
        for _ in range(2):
            with pytest.raises(TooManyFailedError, match="--rescore new"):
                run_job(watched)
        assert spine.num_units == done + 3, "nothing more was done"
        done += 3
    assert run_job(watched, rescore="all") == 3
    assert spine.num_units == done + 4 and len(runs(tmp_path)) == 1


def test_another_form_of_output_is_refused(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet")
    run_job(scheduled())
    with pytest.raises(ConfigError, match=r"output.format: \"parquet\" -> \"jsonl\""):
        run_job(scheduled(output={"format": "jsonl"}), rescore="all")


def test_a_second_run_at_the_same_time_is_refused(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet")
    with take_lease(tmp_path / "out"), pytest.raises(OutputInUseError):
        run_job(scheduled())
    assert run_job(scheduled()) == 0


@pytest.mark.parametrize(
    "blocks",
    [
        {"input": {"limit": 3}},
        {"input": {"format": "huggingface"}},
        {"output": {"on_exists": "overwrite"}},
    ],
)
def test_settings_that_mean_nothing_incrementally_are_refused(
    write: Write, scheduled: Callable[..., Job], blocks: dict[str, Any]
) -> None:
    write("a.parquet")
    (block,) = blocks
    (name,) = blocks[block]
    with pytest.raises(ConfigError, match=rf"^{block}\.{name}"):
        run_job(scheduled(**blocks))


def test_incremental_and_whole_runs_leave_each_others_outputs_alone(
    tmp_path: Path, model_folder: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet")
    run_job(scheduled())
    for on_exists in ("resume", "overwrite"):
        with pytest.raises(ConfigError, match="is kept by incremental runs"):
            run_job(job(tmp_path, model_folder, output={"on_exists": on_exists}))
    run_job(job(tmp_path, model_folder, output={"path": str(tmp_path / "whole")}))
    with pytest.raises(ConfigError, match="is not kept by incremental runs"):
        run_job(scheduled(output={"path": str(tmp_path / "whole")}))


def test_an_output_that_another_kind_of_run_made_while_the_lease_was_waited_for_is_left_alone(
    tmp_path: Path,
    model_folder: Path,
    spine: Spine,
    write: Write,
    scheduled: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write("a.parquet")

    def after_another(output: str) -> Lease:
        assert run_job(job(tmp_path, model_folder)) == 0
        return take_lease(output)

    monkeypatch.setattr(jobs.incremental, "take_lease", after_another)
    with pytest.raises(ConfigError, match="is not kept by incremental runs"):
        run_job(scheduled())
    assert texts(tmp_path) == rows(a=40) and not read_ledger(tmp_path / "out").entries


def test_too_many_failed_rows_are_3_and_the_run_is_in_the_ledger(
    half_failed: Path, spine: Spine, scheduled: Callable[..., Job]
) -> None:
    (entry,) = read_ledger(half_failed).entries
    assert (entry.rows, entry.failed) == (2, 1)


@pytest.fixture
def half_failed(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> Path:
    """An output one of whose two rows failed."""
    pq.write_table(pa.table({"text": ["a 1", None]}), write("a.parquet"))
    assert run_job(scheduled()) == 3
    capsys.readouterr()
    return tmp_path / "out"


@in_both_modes
def test_a_run_that_finds_nothing_to_do_ends_as_the_last_one_with_rows_until_there_is_another(
    half_failed: Path, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    (entry,) = read_ledger(half_failed).entries
    for _ in range(2):
        assert run_job(scheduled()) == 3, "or a scheduler's second try would hide it"
        said = capsys.readouterr().err
        assert "Nothing to do" in said and f"run {entry.run}, " in said
        assert "1 of 2 rows failed, more than errors.max_failed_rows (0.01) allows: exit code 3" in said
        touch(half_failed.parent / "in" / "a.parquet")
    assert run_job(scheduled(errors={"max_failed_rows": 1})) == 0, "by the limit of who asks"
    write("empty.parquet", 0)
    assert run_job(scheduled()) == 0 and run_job(scheduled()) == 3, "which says nothing of rows"
    write("b.parquet")
    assert run_job(scheduled()) == 0 and run_job(scheduled()) == 0


def test_rows_that_are_accepted_as_they_are_end_the_complaint(half_failed: Path, scheduled: Callable[..., Job]) -> None:
    assert run_job(scheduled(), rescore="new") == 0
    assert run_job(scheduled()) == 0


def test_what_a_retry_made_of_the_last_run_counts_and_a_run_that_was_taken_away_does_not(
    half_failed: Path, scheduled: Callable[..., Job]
) -> None:
    (partition,) = half_failed.glob("run=*")
    report = partition / "_gptj_batch" / "run.json"
    report.write_text(json.dumps({**json.loads(report.read_text()), "done": 2, "failed": 0}))
    assert run_job(scheduled()) == 0
    report.unlink()
    assert run_job(scheduled()) == 3
    shutil.rmtree(partition)
    assert run_job(scheduled()) == 0


def test_a_bad_file_stops_the_run_or_is_skipped_until_it_can_be_read(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet")
    (tmp_path / "in" / "b.parquet").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"b\.parquet"):
        run_job(scheduled())
    skipping = scheduled(errors={"bad_files": "skip"})
    assert run_job(skipping) == 3
    assert run_job(skipping) == 3, "it is still not done"
    write("b.parquet", 4)
    assert run_job(skipping) == 0
    assert texts(tmp_path) == rows(a=40, b=4)


def test_files_without_rows_are_done_once(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    write("a.parquet", 0), write("b.parquet", 0)
    assert run_job(scheduled()) == 0
    write("c.parquet", 3), write("d.parquet", 0)
    assert run_job(scheduled()) == 0
    assert runs(tmp_path) == [["a.parquet", "b.parquet"], ["c.parquet", "d.parquet"]]
    assert run_job(scheduled()) == 0 and texts(tmp_path) == rows(c=3)
    write("a.parquet", 2)
    assert run_job(scheduled()) == 0 and texts(tmp_path) == rows(a=2, c=3)


@in_both_modes
def test_partitions_of_the_input_and_of_the_output_are_kept(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job]
) -> None:
    output = {"partition_by": ["label"]}
    write("day=1/a.parquet"), write("day=2/a.parquet", 8)
    run_job(scheduled(output=output))
    write("day=2/a.parquet", 9), write("day=3/b.parquet", 1)
    assert run_job(scheduled(output=output)) == 0
    table = ds.dataset(tmp_path / "out", format="parquet", partitioning="hive").to_table()
    days = [f"{day}" for day in table.column("day").to_pylist()]
    assert (days.count("1"), days.count("2"), days.count("3")) == (40, 9, 1)


def test_a_column_that_is_new_is_told_and_the_order_of_the_others_stays(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a 1"], "n": pa.array([1], pa.int32())}), tmp_path / "in" / "a.parquet")
    run_job(scheduled())
    pq.write_table(pa.table({"new": [True], "text": ["b 1"]}), tmp_path / "in" / "b.parquet")
    assert run_job(scheduled()) == 0
    assert 'new: nothing -> "bool"' in capsys.readouterr().err
    last = sorted((tmp_path / "out").rglob("part-*.parquet"))[-1]
    assert pq.read_schema(last).names[:3] == ["text", "n", "new"] and pq.read_schema(last).field("n").type == pa.int32()


def test_drift_beyond_the_limit_is_3_and_the_report_shows_it(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    watched = scheduled(drift={"max_psi": 0.5, "min_rows": 20})
    write("a.parquet", 60, "short")
    assert run_job(watched) == 0
    write("b.parquet", 60, "a text that is a great deal longer than those before")
    assert run_job(watched) == 3
    captured = capsys.readouterr()
    assert "drift from run" in captured.out and "drift.max_psi (0.5) allows: exit code 3" in captured.out
    private = tmp_path / "out" / "_gptj_batch"
    drift = json.loads((private / "drift.json").read_text())
    assert drift["shifts"][0]["name"] == "characters of the input" and drift["shifts"][0]["psi"] > 0.5
    assert {"label", "label_score", "failed"} <= {shift["name"] for shift in drift["shifts"]}
    assert "Drift from run" in (private / "report.html").read_text()
    assert "not as those of run" in json.loads((private / "run.json").read_text())["reason"]
    assert run_job(watched) == 3 and "drift.max_psi (0.5) allows: exit code 3" in capsys.readouterr().err
    assert run_job(scheduled(drift={"max_psi": None, "min_rows": 20})) == 0
    write("c.parquet", 5)
    assert run_job(watched) == 0, "too few rows to be compared"
    assert not (private / "drift.json").exists()


def test_the_command_takes_the_flags(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.parquet")
    file = tmp_path / "job.yaml"
    file.write_text(scheduled(input={"incremental": False}).to_yaml())
    assert main(["run", str(file), "--rescore", "all"]) == 2
    assert main(["run", str(file), "--incremental"]) == 0
    assert main(["run", str(file), "--incremental", "--rescore", "all"]) == 0
    assert len(runs(tmp_path)) == 2


def test_a_report_lists_the_runs_and_other_commands_ask_for_one_of_them(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.parquet")
    run_job(scheduled())
    write("a.parquet", 7)
    run_job(scheduled())
    capsys.readouterr()
    out = str(tmp_path / "out")
    assert main(["report", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 files, 40 rows, 0 failed; rows of 0 files are current" in lines[0]
    assert "1 files, 7 rows, 0 failed; rows of 1 files are current" in lines[1]
    for command in ("retry", "verify"):
        assert main([command, out]) == 2
        assert "is kept by incremental runs; name one of them" in capsys.readouterr().err


def test_a_recount_of_a_run_knows_what_later_runs_replaced(
    tmp_path: Path, spine: Spine, write: Write, scheduled: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.parquet"), write("b.parquet", 10)
    run_job(scheduled())
    write("b.parquet", 7)
    run_job(scheduled())
    first, second = [str(tmp_path / "out" / f"run={entry.run}") for entry in read_ledger(tmp_path / "out").entries]
    capsys.readouterr()
    assert main(["verify", first]) == 1
    said = capsys.readouterr().out
    assert f"was replaced by {Path(second).name}; it had 10 rows" in said and "missing" not in said
    assert main(["verify", second]) == 0
