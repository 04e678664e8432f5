"""Every cell of the table of tasks, through tokenize, infer and decode, against transformers row by row."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gptj_batch.demo import demo_records
from jobs.bench.parity_cells import CELLS, Cell
from jobs.bench.parity_models import models
from jobs.bench.parity_table import compare, markdown

# Log-probabilities of generated tokens may be some tens, and have their cache's rounding besides.
TOLERANCES = {"generate": 3e-5}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    rows = pq.read_table(demo_records()).slice(0, 200).to_pylist()
    return [
        {"title": row["topic"], "text": row["text"], "question": row["question"], "context": row["text"] * 3}
        for row in (rows[0], rows[70], rows[199])
    ]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.task}: {cell.settings}")
def test_columns_are_what_transformers_computes(cell: Cell, folder: Path, records: list[dict[str, Any]]) -> None:
    given = [{"text": " ".join(row["text"] for row in records) * 8}] if cell.texts == "long" else records
    for model in models(cell.kind, folder):
        found = compare(cell, model, given)
        assert (found["failed"], found["same"]) == (0, len(given)), model.name
        assert found["largest_difference"] <= TOLERANCES.get(cell.task, TOLERANCE), model.name


def test_the_table_says_how_many_rows_were_the_same_and_how_far_numbers_are_apart() -> None:
    cell = {"task": "embed", "settings": "mean", "oracle": "hidden_states", "same": 3, "rows": 4}
    (*_, line) = markdown([{**cell, "number": "coordinate", "largest_difference": 1.23e-6}]).splitlines()
    assert line == "| embed | mean | hidden_states | 3 of 4 rows | 1.2e-06 (coordinate) |"
