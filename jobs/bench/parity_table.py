"""Compare every task with transformers on real text, row by row: how far the columns of an output are from the oracle.

    python -m jobs.bench.parity_table [--rows 24] [--only embed]

Rows go through the stages that a job has (tokenize, infer, decode), all of them in the engine at once, in float32, on
the demo model and on random checkpoints; transformers gets them one at a time. The texts lie in `../shared`, beside the
project. Samples are not compared: they are other draws. Writes JSON to jobs/bench/results/.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import torch

from jobs.bench.parity_cells import CELLS, Cell, Record
from jobs.bench.parity_models import Model, models
from jobs.bench.parity_oracle import Oracle
from jobs.bench.parity_ours import output_rows
from jobs.bench.surroundings import surroundings, write_results

SHARED: Final = Path(__file__).parents[3] / "shared" / "data"
LONG_TEXT_OF: Final = 60  # reviews
MAX_LONG_TEXTS: Final = 4


def records(texts: str, rows: int, data: Path) -> list[dict[str, Any]]:
    """Return real texts: news, reviews, questions, or long ones that are many reviews."""
    file, columns = {
        "news": ("ag_news/articles.parquet", ["title", "text"]),
        "reviews": ("movie_reviews/sentences.parquet", ["text"]),
        "questions": ("squad_v2/questions.parquet", ["question", "context"]),
        "long": ("movie_reviews/sentences.parquet", ["text"]),
    }[texts]
    table = pq.read_table(data / file, columns=columns)
    if texts != "long":
        # Spread over the file, whose neighbours are alike: questions of one text follow one another.
        return [table.slice(place * (table.num_rows // rows), 1).to_pylist()[0] for place in range(rows)]
    sentences = table.column("text").to_pylist()
    number = min(rows, MAX_LONG_TEXTS)
    parts = [sentences[place * LONG_TEXT_OF : (place + 1) * LONG_TEXT_OF] for place in range(number)]
    return [{"text": " ".join(part)} for part in parts]


def compare(cell: Cell, model: Model, given: Sequence[Record]) -> dict[str, Any]:
    """Return how one checkpoint's rows compare: rows, those decided alike, failures, the largest difference."""
    oracle = Oracle(model)
    rows = output_rows(cell.block, model.folder, given, torch.get_num_threads())
    done = [(record, row) for record, row in zip(given, rows, strict=True) if row["error"] is None]
    found = [cell.check(oracle, record, row, cell.block) for record, row in done]
    return {
        "model": model.name,
        "rows": len(found),
        "failed": len(rows) - len(found),
        "same": sum(is_same for is_same, _ in found),
        "largest_difference": max((difference for _, difference in found), default=None),
    }


def measure(cell: Cell, rows: int, data: Path, folder: Path) -> dict[str, Any]:
    """Return a cell of the table, with each checkpoint's figures."""
    of_models = [compare(cell, model, records(cell.texts, rows, data)) for model in models(cell.kind, folder)]
    differences = [found["largest_difference"] for found in of_models if found["largest_difference"] is not None]
    return {
        "task": cell.task,
        "settings": cell.settings,
        "oracle": cell.oracle,
        "number": cell.number,
        "rows": sum(found["rows"] for found in of_models),
        "same": sum(found["same"] for found in of_models),
        "largest_difference": max(differences, default=None),
        "block": cell.block,
        "models": of_models,
    }


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """Return the table as it stands in the README."""
    lines = ["| task | settings | oracle | same | largest difference |", "|---|---|---|---|---|"]
    for cell in cells:
        exact = cell["number"] == "offsets"
        difference = "offsets exact" if exact else f"{cell['largest_difference']:.1e} ({cell['number']})"
        same = f"{cell['same']} of {cell['rows']} rows"
        lines.append(f"| {cell['task']} | {cell['settings']} | {cell['oracle']} | {same} | {difference} |")
    return "\n".join(lines)


def main() -> int:
    """Run the comparison; the exit code is 1 where something is decided otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24, help="of each cell and checkpoint")
    parser.add_argument("--only", default="", help="cells whose task and settings hold this text; nothing is written")
    parser.add_argument("--data", type=Path, default=SHARED)
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"--data: {arguments.data} is not there; give the folder of the texts")
    chosen = [cell for cell in CELLS if arguments.only in f"{cell.task} {cell.settings}"]
    with tempfile.TemporaryDirectory(prefix="gptj-parity-") as folder:
        cells = []
        for cell in chosen:
            cells.append(measure(cell, arguments.rows, arguments.data, Path(folder)))
            print(markdown(cells[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(markdown(cells))
    if not arguments.only:
        stands_on = surroundings(threads=os.cpu_count() or 1)
        stands_on["versions"] |= {name: version(name) for name in ("transformers", "pyarrow", "tokenizers")}
        file = write_results({**stands_on, "dtype": "float32", "cells": cells}, "parity")
        print(f"written to {file}", file=sys.stderr)
    return 0 if all(cell["same"] == cell["rows"] for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
