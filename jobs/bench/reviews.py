"""Run sentences of movie reviews through `classify`, `score` and `embed`, each a job through Ray: rows, failures, time.

    python -m jobs.bench.reviews [--model demo] [--limit N] [--data FILE]

Each job is one that a user could write, and runs as one, in a process of its own with a Ray of its own. Looked at are
the columns as well: as many rows as sentences, probabilities that sum to 1, finite numbers, vectors of length 1. The
demo model has read support tickets and made-up news; how many sentiments it gets right says nothing of GPT-J.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from jobs.bench.squad import ROOT, run
from jobs.bench.surroundings import surroundings, write_results

DATA: Final = ROOT.parent / "shared" / "data" / "movie_reviews" / "sentences.parquet"
# The sentences' own column is called `label` too.
PREFIX: Final = "found_"
TASKS: Final[dict[str, dict[str, Any]]] = {
    "classify": {"kind": "classify", "prompt": "{{ text }}\nSentiment:", "labels": ["positive", "negative"]},
    "score": {"kind": "score", "text": "{{ text }}"},
    "embed": {"kind": "embed", "text": "{{ text }}", "pooling": "mean", "normalize": True},
}
TOLERANCE: Final = 1e-4


def job_of(kind: str, data: Path, output: Path, model: str, limit: int | None) -> dict[str, Any]:
    """Return the job of a task."""
    return {
        "name": f"reviews-{kind}",
        "input": {"path": str(data), "key": "id", "limit": limit},
        "task": TASKS[kind],
        "model": {"path": model},
        "output": {"path": str(output), "prefix": PREFIX, "on_exists": "overwrite"},
        "errors": {"max_failed_rows": 0.5},
    }


def labels_found(table: pa.Table) -> dict[str, Any]:
    """Return the share of right sentiments, and the rows whose probabilities are none."""
    wrong = right = 0
    for row in table.to_pylist():
        if row[f"{PREFIX}error"] is None:
            scores = dict(row[f"{PREFIX}label_scores"])
            is_best = scores[row[f"{PREFIX}label"]] == max(scores.values()) == row[f"{PREFIX}label_score"]
            wrong += not (is_best and abs(sum(scores.values()) - 1) < TOLERANCE)
            right += row[f"{PREFIX}label"] == row["label"]
    return {"rows_with_wrong_columns": wrong, "right": round(right / max(table.num_rows, 1), 4)}


def scores_found(table: pa.Table) -> dict[str, Any]:
    """Return the perplexity of all sentences, and the rows whose numbers do not fit."""
    wrong, total, number = 0, 0.0, 0
    for row in table.to_pylist():
        if row[f"{PREFIX}error"] is None:
            logprob, tokens = row[f"{PREFIX}logprob_sum"], row[f"{PREFIX}num_scored_tokens"]
            perplexity = row[f"{PREFIX}perplexity"]
            fits = tokens == 0 or math.isclose(perplexity, math.exp(-logprob / tokens), rel_tol=TOLERANCE)
            wrong += not (math.isfinite(logprob) and logprob <= 0 and fits)
            total, number = total + logprob, number + tokens
    return {"rows_with_wrong_columns": wrong, "perplexity": round(math.exp(-total / max(number, 1)), 2)}


def vectors_found(table: pa.Table) -> dict[str, Any]:
    """Return the width of the vectors, and the rows whose vector has not length 1."""
    column = table.column(f"{PREFIX}embedding")
    vectors = np.stack([np.array(vector) for vector in column.drop_null().to_pylist()])
    off = np.abs(np.linalg.norm(vectors, axis=1) - 1) > TOLERANCE
    return {"rows_with_wrong_columns": int(off.sum()), "width": column.type.list_size}


FOUND: Final[dict[str, Callable[[pa.Table], dict[str, Any]]]] = {
    "classify": labels_found,
    "score": scores_found,
    "embed": vectors_found,
}


def report_of(kind: str, table: pa.Table, report: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of a finished run."""
    errors = table.column(f"{PREFIX}error")
    return {
        "rows": table.num_rows,
        "failed_rows": len(errors) - errors.null_count,
        "seconds": report["seconds"],
        "rows_per_s": round(table.num_rows / report["seconds"], 2),
        "prompt_tokens": report.get("prompt_tokens_this_run"),
        "tokens_per_s": report.get("tokens_per_s"),
        "dtype": report["backend"]["dtype"],
        **FOUND[kind](table),
    }


def main() -> None:
    """Run the jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--name", default="reviews", help="of the file in jobs/bench/results")
    arguments = parser.parse_args()
    if not arguments.data.exists():
        parser.error(f"--data: {arguments.data} is not there; give the Parquet file of the sentences")
    data, found = arguments.data.resolve(), {}
    with tempfile.TemporaryDirectory(prefix="gptj-reviews-") as folder:
        for kind in TASKS:
            job = job_of(kind, data, Path(folder) / kind, arguments.model, arguments.limit)
            found[kind] = report_of(kind, *run(job))
            print(f"{kind}: {json.dumps(found[kind])}", flush=True)
    stands_on = surroundings(threads=os.cpu_count() or 1)
    stands_on["versions"] |= {name: version(name) for name in ("ray", "pyarrow")}
    config = {"model": arguments.model, "tasks": TASKS, "data": data.name, "limit": arguments.limit}
    file = write_results({**stands_on, "config": config, "results": found}, arguments.name)
    print(f"written to {file}")


if __name__ == "__main__":
    main()
