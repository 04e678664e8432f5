import subprocess
import sys
from pathlib import Path

import pytest
from whole_runs import Spine, job, write

from jobs.score_scheduled import main
from pipelines.ledger import read_ledger

SCRIPT = Path(__file__).parents[3] / "jobs" / "score_scheduled.py"


@pytest.fixture
def job_file(folder: Path, model_folder: Path) -> str:
    file = folder / "nightly.yaml"
    file.write_text(job(folder, model_folder).to_yaml())
    return str(file)


def test_it_runs_incrementally_whatever_the_job_says(folder: Path, job_file: str, spine: Spine) -> None:
    assert main([job_file, "errors.max_failed_rows=1"]) == 0
    write(folder, ["one more"], "b.parquet")
    assert main([job_file]) == 0
    assert [len(entry.files) for entry in read_ledger(folder / "out").entries] == [1, 1]


def test_it_ends_with_the_codes_of_a_run(folder: Path, job_file: str, spine: Spine) -> None:
    assert main([job_file, "task.propmt=x"]) == 2
    write(folder, [None, None], "b.parquet")
    assert main([job_file]) == 3
    assert main([job_file, "task.prompt=Is it {{ text }}"]) == 2
    assert main([job_file, "task.prompt=Is it {{ text }}", "--rescore", "new"]) == 0


def test_a_scheduler_may_start_it_as_a_file_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "no-such-job.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2 and "no-such-job.yaml cannot be read" in done.stderr
