import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import ConfigError
from jobs.plan import run_plan
from pipelines.config import Job, check_job
from pipelines.job_file import JobFile

SECRET = "zqxcanary"


@pytest.fixture
def job(tmp_path: Path, model_folder: Path) -> Job:
    pq.write_table(pa.table({"text": [f"{SECRET} {row}" for row in range(20)] + [None]}), tmp_path / "a.parquet")
    values = {
        "name": "planned",
        "input": {"path": str(tmp_path / "a.parquet")},
        "task": {"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 8},
        "model": {"path": str(model_folder), "dtype": "float32"},
        "backend": {"kind": "fake"},
        "output": {"path": str(tmp_path / "out"), "prefix": "g_"},
    }
    return check_job(JobFile("job.yaml", values))


def test_a_plan_says_what_comes_and_leaves_nothing_behind(
    job: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_plan(job) == 0
    said = capsys.readouterr().out
    assert "21 rows of 1 files" in said
    assert "g_generated_text" in said and "g_error" in said
    assert "refused: about 1 rows" in said
    assert "MiB in float32" in said
    assert "GPU-hours" in said and "assumed" in said
    assert SECRET not in said
    assert not (tmp_path / "out").exists()


def test_measuring_runs_some_rows(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_plan(job, measure=True) == 0
    assert "20 requests took" in capsys.readouterr().out


def test_machines_get_json(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_plan(job, as_json=True) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["rows_refused"], facts["dtype"]) == (21, 1, "float32")


def test_a_job_that_cannot_run_has_no_plan(job: Job) -> None:
    missing = job.model_copy(update={"input": job.input.model_copy(update={"path": "none/*.parquet"})})
    with pytest.raises(Exception, match="none") as caught:
        run_plan(missing)
    assert not isinstance(caught.value, ConfigError) or "input.path" in str(caught.value)
