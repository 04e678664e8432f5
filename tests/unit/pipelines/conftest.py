"""Jobs over a few records, for the tiny model of tests/unit/conftest.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import Job, check_job
from pipelines.job_file import JobFile

NUM_ROWS = 100


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A folder with one Parquet file of a hundred rows."""
    folder = tmp_path / "records"
    folder.mkdir()
    texts = [f"text {row}" for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"id": pa.array(range(NUM_ROWS)), "text": texts}), folder / "a.parquet")
    return folder


@pytest.fixture
def make_job(records: Path, model_folder: Path, tmp_path: Path) -> Callable[..., Job]:
    """Make a job; each argument is a block, whose settings are added to those needed. A task with a kind is whole."""

    def make(**blocks: dict[str, Any]) -> Job:
        needed: dict[str, dict[str, Any]] = {
            "input": {"path": str(records)},
            "task": {"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 8},
            "model": {"path": str(model_folder)},
            "backend": {"kind": "fake"},
            "output": {"path": str(tmp_path / "out")},
        }
        values: dict[str, Any] = {"name": "test-job"}
        for block in needed.keys() | blocks.keys():
            settings = blocks.get(block, {})
            values[block] = settings if block == "task" and "kind" in settings else needed.get(block, {}) | settings
        return check_job(JobFile("job.yaml", values))

    return make
