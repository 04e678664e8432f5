"""`gptj-batch demo`: the main job on the records and the model in the package, through Ray Data to Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gptj_batch.demo import demo_records
from gptj_batch.errors import shorten
from gptj_batch.records.output import OutputFolder
from jobs.cluster import connected
from jobs.run import run_job
from pipelines.config import load_job

CONFIGS = Path(__file__).parent / "configs"
# A job, and the columns of its output that are worth a look.
STEPS: tuple[tuple[str, str, Sequence[str]], ...] = (
    ("classify", "Labels, by the likelihood of each topic behind the text", ("topic", "label", "label_score", "text")),
    ("generate", "Summaries, generated", ("generated_text", "text")),
    ("extract", "Answers, as spans of the text", ("question", "answer", "answer_text", "answer_score")),
)
SHOWN_ROWS = 4
SHOWN_CHARS = 60


def run_demo(output: str) -> int:
    """Run the demo's jobs into folders below `output` and show first rows; return the first exit code that is not 0."""
    records = demo_records()
    print(f"{pq.read_metadata(records).num_rows} made-up news items and support tickets: {records}\n")
    codes = []
    with connected(None):
        for name, title, columns in STEPS:
            folder = Path(output) / name
            overrides = [f"input.path={records}", f"output.path={folder}"]
            print(f"== {title} (jobs/configs/demo-{name}.yaml)", flush=True)
            codes.append(run_job(load_job(CONFIGS / f"demo-{name}.yaml", overrides)))
            print(_first_rows(folder, columns), flush=True)
            print(f"report: {OutputFolder.at(folder).private / 'report.html'}\n", flush=True)
    return next((code for code in codes if code), 0)


def _first_rows(folder: Path, columns: Sequence[str]) -> str:
    """Return a few rows as text."""
    first = OutputFolder.at(folder).parts()[0]
    rows = pq.read_table(first, columns=list(columns)).slice(0, SHOWN_ROWS).to_pylist()
    return "\n".join("  " + " | ".join(f"{name}: {_shown(row[name])}" for name in columns) for row in rows)


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else shorten(repr(value), SHOWN_CHARS)
