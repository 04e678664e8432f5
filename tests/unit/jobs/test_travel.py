from pathlib import Path

import pytest

from jobs.travel import for_the_cluster
from pipelines.config import Job, check_job
from pipelines.job_file import JobFile


def job(**blocks: dict[str, object]) -> Job:
    values = {
        "name": "x",
        "input": {"path": "data/*.parquet"},
        "task": {"kind": "generate", "prompt": "{{ text }}"},
        "output": {"path": "out"},
        **blocks,
    }
    return check_job(JobFile("job.yaml", values))


def test_paths_of_this_machine_are_said_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    sent = for_the_cluster(job(model={"path": "model"}))
    assert sent.input.path == str(tmp_path / "data/*.parquet")
    assert (sent.model.path, sent.output.path) == (str(tmp_path / "model"), str(tmp_path / "out"))


def test_what_is_no_path_of_this_machine_is_sent_as_it_is() -> None:
    sent = for_the_cluster(job(input={"path": ["s3://bucket/a", "gs://b/*.parquet"]}, model={"path": "owner/name"}))
    assert sent.input.path == ("s3://bucket/a", "gs://b/*.parquet")
    assert sent.model.path == "owner/name"


def test_the_name_of_a_dataset_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert for_the_cluster(job(input={"path": "ag_news", "format": "huggingface"})).input.path == "ag_news"
