"""Whole runs without Ray: the stages called one after the other where Ray Data would call them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.errors import BackendError
from gptj_batch.stages.decode import DecodeStage
from gptj_batch.stages.infer import InferStage, ReplicaSettings
from gptj_batch.stages.read import ReadStage
from gptj_batch.stages.tokenize import TokenizeStage
from gptj_batch.stages.write import WriteStage
from pipelines.config import Job, check_job
from pipelines.job_file import JobFile
from pipelines.prepare import Run

BUCKET = "s3://runs"
OUT = f"{BUCKET}/team/out"
TEXTS = [f"text {row}" for row in range(100)]


class Spine:
    """Does units in this process; ends with an error after `units_before_end` of them."""

    def __init__(self) -> None:
        self.units_before_end: int | None = None
        self.num_units = 0

    def __call__(self, run: Run, pending: Any, progress: Any, *_: Any) -> dict[str, Any]:
        model, output = run.model_path, run.job.output
        replica = ReplicaSettings(
            kind="fake", model_path=model, revision=None, dtype="auto", device="cpu", num_threads=1
        )
        stages = [
            ReadStage(run.plan, np.asarray(pending), run.columns, run.job.input.key),
            TokenizeStage(run.task, model, None, run.model.n_positions),
            InferStage(run.task, replica),
            DecodeStage(run.task, model, None, output.prefix),
            WriteStage(run.plan, run.folder, run.error_column, run.lineage()),
        ]
        facts: dict[str, Any] = {}
        for place in range(len(pending)):
            if place == self.units_before_end:
                raise BackendError("the machine is gone")
            table = pa.table({"id": [place]})
            for stage in stages:
                table = stage(table)
            self.num_units += 1
            for counts in table.to_pylist():
                progress.add(counts)
                facts = json.loads(counts["backend"])
        progress.finish()
        return facts


def write(folder: Path, texts: list[str | None], name: str = "a.parquet") -> None:
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / "in" / name)


def job(folder: Path, model_folder: Path, **blocks: dict[str, Any]) -> Job:
    values: dict[str, Any] = {
        "name": "test-job",
        "input": {"path": str(folder / "in")},
        "task": {"kind": "classify", "prompt": "{{ text }}", "labels": ["World", "Sports"]},
        "model": {"path": str(model_folder)},
        "backend": {"kind": "fake"},
        "output": {"path": str(folder / "out")},
    }
    for block, settings in blocks.items():
        values[block] = {**values.get(block, {}), **settings}
    return check_job(JobFile("job.yaml", values))


def report(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "out" / "_gptj_batch" / "run.json").read_text())
    return facts
