import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore
from unit.pipelines.finished import finish, finish_unit, output_of

from gptj_batch.errors import ConfigError, OutputError
from gptj_batch.records.beside import beside, change_places
from gptj_batch.records.bucket_store import BucketStore
from gptj_batch.records.output import OutputFolder
from pipelines.config import Job
from pipelines.destination import claim_output, placed
from pipelines.prepare import prepare

MakeJob = Callable[..., Job]


@pytest.mark.parametrize("on_exists", ["resume", "overwrite", "fail"])
def test_a_new_folder_is_claimed_and_everything_is_to_do(make_job: MakeJob, on_exists: str) -> None:
    run = prepare(make_job(output={"on_exists": on_exists}))
    assert claim_output(run).tolist() == [0, 1, 2, 3]
    assert json.loads(output_of(run).plan.read_text()) == run.fingerprint()


@pytest.mark.parametrize("on_exists", ["resume", "overwrite", "fail"])
def test_a_folder_with_only_dotted_names_is_as_good_as_new(make_job: MakeJob, tmp_path: Path, on_exists: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    assert len(claim_output(prepare(make_job(output={"on_exists": on_exists})))) == 4


def test_a_rerun_does_what_is_missing(make_job: MakeJob) -> None:
    run = prepare(make_job())
    claim_output(run)
    finish_unit(run, 1)
    finish_unit(run, 3)
    assert claim_output(prepare(make_job())).tolist() == [0, 2]


def test_a_complete_output_has_nothing_to_do(make_job: MakeJob) -> None:
    run = prepare(make_job())
    claim_output(run)
    finish(run)
    assert claim_output(prepare(make_job())).tolist() == []


def test_overwriting_takes_away_the_old_output_and_nothing_else(make_job: MakeJob, tmp_path: Path) -> None:
    run = prepare(make_job())
    claim_output(run)
    finish(run)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    again = prepare(make_job(task={"seed": 5}, output={"on_exists": "overwrite"}))
    assert claim_output(again).tolist() == [0, 1, 2, 3]
    assert not output_of(again).success.exists() and not output_of(again).parts()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert json.loads(output_of(again).plan.read_text())["task"]["seed"] == 5


def test_another_form_is_taken_until_the_output_is_complete(make_job: MakeJob) -> None:
    run = prepare(make_job())
    claim_output(run)
    other = prepare(make_job(output={"format": "arrow", "compression": "lz4"}))
    assert len(claim_output(other)) == 4
    finish(other)
    assert len(claim_output(other)) == 0
    with pytest.raises(ConfigError) as caught:
        claim_output(run)
    assert 'output.compression: "lz4" -> "zstd"\n  output.format: "arrow" -> "parquet"\n' in str(caught.value)


def test_another_configuration_is_refused_with_what_differs(make_job: MakeJob) -> None:
    claim_output(prepare(make_job()))
    other = prepare(make_job(task={"seed": 5, "temperature": 0.5}, output={"prefix": "g_"}))
    with pytest.raises(ConfigError) as caught:
        claim_output(other)
    message = str(caught.value)
    assert "was made by another configuration:" in message
    for line in ('output.prefix: "" -> "g_"', "task.seed: 0 -> 5", "task.temperature: 0.0 -> 0.5"):
        assert f"\n  {line}\n" in message
    assert message.endswith("or start anew with output.on_exists=overwrite")


def test_many_differences_are_cut(make_job: MakeJob, records: Path) -> None:
    claim_output(prepare(make_job()))
    for number in range(30):
        shutil.copy(records / "a.parquet", records / f"b{number}.parquet")
    with pytest.raises(ConfigError, match=r"\n  and \d+ more\n"):
        claim_output(prepare(make_job()))


@pytest.mark.parametrize("finished", [False, True])
def test_fail_refuses_even_ones_own_output(make_job: MakeJob, finished: bool) -> None:
    run = prepare(make_job(output={"on_exists": "fail"}))
    claim_output(run)
    if finished:
        finish(run)
    with pytest.raises(ConfigError, match=r"is not empty, and output\.on_exists is fail; choose another path"):
        claim_output(run)


@pytest.mark.parametrize("on_exists", ["resume", "overwrite"])
@pytest.mark.parametrize("is_file", [False, True])
def test_somebody_elses_files_are_never_touched(
    make_job: MakeJob, tmp_path: Path, on_exists: str, is_file: bool
) -> None:
    theirs = tmp_path / "out" if is_file else tmp_path / "out" / "part-00000.parquet"
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("theirs")
    with pytest.raises(ConfigError, match="holds files that gptj-batch did not make"):
        claim_output(prepare(make_job(output={"on_exists": on_exists})))
    assert theirs.read_text() == "theirs"


def test_results_without_a_plan_are_not_gone_on_with(make_job: MakeJob) -> None:
    run = prepare(make_job())
    claim_output(run)
    finish_unit(run, 0)
    output_of(run).plan.unlink()
    with pytest.raises(OutputError, match=r"has results but no plan\.json"):
        claim_output(run)
    assert len(claim_output(prepare(make_job(output={"on_exists": "overwrite"})))) == 4


def test_a_hub_is_refused_as_an_output(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match=r"output\.path: hf:// is not written to"):
        claim_output(prepare(make_job(output={"path": "hf://datasets/owner/name/out"})))


@pytest.mark.parametrize("left", [["part-00001-1.parquet"], ["part-00000-1.parquet", "part-00001-1.parquet"]])
def test_what_an_overwrite_in_a_bucket_left_half_removed_is_in_no_later_ones_way(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, left: list[str]
) -> None:
    client = MemoryStore()
    monkeypatch.setattr(BucketStore, "of", lambda bucket: BucketStore(client))
    job = make_job(output={"path": "s3://memory/out", "on_exists": "overwrite"})
    claim_output(first := placed(prepare(job)))
    finish(first)
    # The objects go in batches of a thousand, by their names: the plan is among the first, and parts the last.
    new = OutputFolder.at(beside(job.output.path))
    for name in left:
        new.store.write(new.root / name, b"of the output that is in its place by now")
    again = placed(prepare(job))
    assert again.is_beside and claim_output(again).tolist() == [0, 1, 2, 3]
    finish(again)
    assert [part.name for part in OutputFolder.at(again.folder).parts()] == ["part-00000-1.parquet"]
    change_places(job.output.path)
    assert [part.name for part in output_of(again).parts()] == ["part-00000-1.parquet"]
    assert not new.store.is_folder(new.root)
