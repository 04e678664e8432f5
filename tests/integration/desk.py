"""Where a test's jobs lie, and what they read and do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from unit.records.tables import every_type

from integration.clusters import RunningCluster, connect
from integration.in_process import WithoutRay
from integration.running import CANARY, Outcome, run_here, write_job
from integration.tiny_model import N_POSITIONS, TinyModel

MAX_NEW_TOKENS = 6
GENERATE = {"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": MAX_NEW_TOKENS}
GENERATED = ["generated_text", "finish_reason", "num_prompt_tokens", "num_generated_tokens", "error"]
# What fits before the new tokens.
ROOM = N_POSITIONS - MAX_NEW_TOKENS


@dataclass(frozen=True)
class Desk:
    """A folder for one test's files, with the model and the cluster that its jobs use."""

    folder: Path
    tiny: TinyModel
    cluster: RunningCluster

    def job(self, source: Path, task: dict[str, Any], name: str = "output", **blocks: Any) -> Path:
        """Write a job file; its output has the same name."""
        settings: dict[str, Any] = {
            "input": {},
            "output": {},
            "model": {"path": str(self.tiny.folder), "dtype": "float32"},
            # One thread: a model this small loses more to waiting threads than it gains.
            "replicas": {"cpus_each": 1.0},
            **blocks,
        }
        settings["input"] = {"path": str(source), **settings["input"]}
        settings["output"] = {"path": str(self.output(name)), **settings["output"]}
        return write_job(self.folder / f"{name}.yaml", task=task, **settings)

    def run(self, job: Path, *arguments: str) -> Outcome:
        """Run a job in this process."""
        if not WithoutRay.now:
            connect(self.cluster)
        return run_here(job, *arguments)

    def output(self, name: str = "output") -> Path:
        """Return an output's folder."""
        return self.folder / name

    def write_rows(self, columns: dict[str, Any], name: str = "rows.parquet") -> Path:
        """Write a file of the input, and return the folder that it lies in."""
        folder = self.folder / "input"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / name)
        return folder


def articles(start: int, stop: int) -> pa.Table:
    """Rows with a number, a text that no other row has, and a column of every type."""
    texts = [f"{CANARY} {row}: The team won {row % 7} matches in the market." for row in range(start, stop)]
    rows = pa.table({"id": pa.array(range(start, stop), pa.int64()), "text": pa.array(texts, pa.string())})
    types = pa.concat_tables([every_type()] * (stop // 3 + 1)).slice(start, stop - start)
    fields = [*rows.schema, *types.schema]
    return pa.table([*rows.columns, *types.columns], schema=pa.schema(fields, metadata=types.schema.metadata))


def text_with_bad_bytes(values: list[bytes | None]) -> pa.Array:
    """Return a text column that nobody checked."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())
