from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.records.output import OutputFolder
from pipelines.config import Job
from pipelines.destination import claim_output
from pipelines.prepare import prepare
from pipelines.progress import Counts
from pipelines.report import Report
from pipelines.report_page import MAX_VALUES, write_page

MakeJob = Callable[..., Job]


@pytest.fixture
def page_of(make_job: MakeJob, tmp_path: Path) -> Callable[..., str]:
    """Publish parts with these columns and return the page about them."""

    def page(*parts: dict[str, Any], **facts: Any) -> str:
        run = prepare(make_job())
        claim_output(run)
        folder = OutputFolder.at(run.job.output.path)
        for index, columns in enumerate(parts):
            table = pa.table(columns)
            no_errors = pa.nulls(table.num_rows, pa.string())
            pq.write_table(table.append_column(run.error_column, no_errors), folder.part(index, len(parts)))
        report = Report.of_units(run, Counts(), 1.0, 0.0, {"kind": "fake"})
        write_page(Report(**{**vars(report), "columns": list(parts[0]), **facts}))
        return (folder.private / "report.html").read_text(encoding="utf-8")

    return page


def test_few_values_are_bars_over_all_parts(page_of: Callable[..., str]) -> None:
    page = page_of({"label": ["a", "b", None]}, {"label": ["a", None, None]})
    assert "<h2>label</h2>" in page
    assert '<td>a</td><td class="number">2</td>' in page and "width: 50.0%" in page


def test_numbers_are_a_line(page_of: Callable[..., str]) -> None:
    one, three = pa.array([None, 3], pa.int32()), pa.array([3, None], pa.int32())
    page = page_of({"score": [0.0, 4.0], "tokens": one}, {"score": [2.0, None], "tokens": three})
    assert "from 0 to 4, mean 2" in page and "from 3 to 3, mean 3" in page


def test_numbers_that_are_not_finite_are_left_out(page_of: Callable[..., str]) -> None:
    nothing = pa.array([float("nan"), None], pa.float64())
    page = page_of(
        {"perplexity": [2.0, float("inf")], "nothing": nothing}, {"perplexity": [4.0, float("nan")], "nothing": nothing}
    )
    assert "from 2 to 4, mean 3" in page and "<h2>nothing</h2>" not in page
    assert "inf" not in page and "nan" not in page


def test_vectors_are_a_line_of_their_lengths(page_of: Callable[..., str]) -> None:
    kind = pa.list_(pa.float32(), 2)
    vectors = pa.array([[1.0, 1.0], None, [3.0, 4.0], [0.0, 1.0]], kind).slice(1)
    page = page_of({"embedding": vectors}, {"embedding": pa.nulls(2, kind)})
    assert "vectors of 2 numbers, their lengths from 1 to 5, mean 3" in page


def test_free_text_lists_and_nulls_are_left_out(page_of: Callable[..., str]) -> None:
    page = page_of(
        {
            "text": [f"free text {row}" for row in range(MAX_VALUES + 1)],
            "samples": [["x"]] * (MAX_VALUES + 1),
            "nothing": pa.nulls(MAX_VALUES + 1, pa.string()),
            "nan": pa.nulls(MAX_VALUES + 1, pa.float64()),
        }
    )
    assert "<h2>" not in page and "free text" not in page


def test_values_from_outside_cannot_write_html(page_of: Callable[..., str]) -> None:
    page = page_of({"label": ["<script>alert(1)</script>"]}, name="<b>job</b>", skipped_files=["<i>file</i>"])
    assert "<script>" not in page and "<b>" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page and "default-src" in page


def test_the_page_needs_nothing_from_elsewhere(page_of: Callable[..., str]) -> None:
    page = page_of({"label": ["a"]})
    assert not any(word in page for word in ("http://", "https://", "src=", "href=", "@import"))
