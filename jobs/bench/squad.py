"""Run SQuAD 2.0 questions through `extract` by head: how fast, how well, and whether every offset is exact.

    python -m jobs.bench.squad [--model demo] [--limit N] [--scoring global_softmax] [--data FILE]

The job is one that a user could write, and runs as one, in a process of its own with a Ray of its own. Exact match and
F1 are SQuAD's, answers compared as its evaluation does (lower case, no punctuation, no articles), the best over the
answers given; a question that has none is right where there is no answer. The demo model has never seen such texts: its
score says that the path is right, and nothing of GPT-J.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.squad_score import mean_scores
from jobs.bench.surroundings import surroundings, write_results

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "squad_v2" / "questions.parquet"
# The question, `is_impossible` and `answers` stay in the output beside what the task adds.
PREFIX = "found_"


def job_of(data: Path, output: Path, model: str, scoring: str, limit: int | None) -> dict[str, Any]:
    """Return the job."""
    return {
        "name": "squad",
        "input": {"path": str(data), "key": "id", "limit": limit},
        "task": {
            "kind": "extract",
            "method": "head",
            "question": "{{ question }}",
            "context": "{{ context }}",
            "allow_no_answer": True,
            "max_question_tokens": 128,
            "top_k": 3,
            "scoring": scoring,
        },
        "model": {"path": model, "dtype": "float32"},
        "output": {"path": str(output), "prefix": PREFIX, "on_exists": "overwrite"},
        "errors": {"max_failed_rows": 0.5},
    }


def run(job: dict[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
    """Run the job as the command does, and return its output and its `run.json`. Raises RuntimeError."""
    output = Path(job["output"]["path"])
    file = output.with_suffix(".yaml")
    file.write_text(json.dumps(job))  # JSON is YAML
    command = [sys.executable, "-m", "jobs.cli", "run", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
    if done.returncode:
        raise RuntimeError(f"the run ended with {done.returncode}: {done.stderr[-4000:]}")
    report = json.loads((output / "_gptj_batch" / "run.json").read_text())
    return pq.read_table(output), report


def offset_mismatches(rows: Sequence[dict[str, Any]]) -> int:
    """Return how many answers are not what their context holds at their offsets."""
    wrong = 0
    for row in rows:
        for answer in row[f"{PREFIX}answers"] or ():
            text, start, end = answer["text"], answer["start"], answer["end"]
            wrong += (start, end) != (None, None) if text is None else row["context"][start:end] != text
    return wrong


def report_of(table: pa.Table, report: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of a finished run."""
    rows = table.to_pylist()
    answered = [row for row in rows if row[f"{PREFIX}error"] is None]
    pairs = [
        (row[f"{PREFIX}answer_text"] or "", [] if row["is_impossible"] else [a["text"] for a in row["answers"]])
        for row in rows
    ]
    seconds = report["seconds"]
    return {
        "rows": len(rows),
        "failed_rows": len(rows) - len(answered),
        "offset_mismatches": offset_mismatches(rows),
        "answers_checked": sum(len(row[f"{PREFIX}answers"]) for row in answered),
        "seconds": seconds,
        "rows_per_s": round(len(rows) / seconds, 2),
        "prompt_tokens": report.get("prompt_tokens_this_run"),
        "tokens_per_s": report.get("tokens_per_s"),
        **mean_scores(pairs),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--scoring", default="global_softmax", choices=["global_softmax", "pipeline"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--name", default="squad", help="of the file in jobs/bench/results")
    arguments = parser.parse_args()
    if not arguments.data.exists():
        parser.error(f"--data: {arguments.data} is not there; give the Parquet file of the questions")
    with tempfile.TemporaryDirectory(prefix="gptj-squad-") as folder:
        job = job_of(
            arguments.data.resolve(), Path(folder) / "out", arguments.model, arguments.scoring, arguments.limit
        )
        found = report_of(*run(job))
    stands_on = surroundings(threads=os.cpu_count() or 1)
    stands_on["versions"] |= {name: version(name) for name in ("ray", "pyarrow")}
    config = {"model": arguments.model, "task": job["task"], "data": arguments.data.name, "limit": arguments.limit}
    file = write_results({**stands_on, "config": config, "result": found}, arguments.name)
    print(json.dumps(found, indent=2))
    print(f"written to {file}")


if __name__ == "__main__":
    main()
