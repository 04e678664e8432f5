"""The notebooks, run from top to bottom by a kernel; and what is stored of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from integration.running import environment
from jobs.refresh_notebooks import FOLDER, executed

pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_STORED_BYTES = 60_000
pytestmark = pytest.mark.timeout(900)


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(cell: Any) -> str:
    return "".join(
        "".join(output.get("text", output.get("data", {}).get("text/html", ""))) for output in cell["outputs"]
    )


def kinds(cell: Any) -> list[str]:
    return [output["output_type"] for output in cell["outputs"]]


def stored(notebook: Path) -> Any:
    return json.loads(notebook.read_text(encoding="utf-8"))


def test_there_are_two() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == ["extract_and_check", "label_a_corpus"]


@pytest.mark.slow
@pytest.mark.parametrize("where", [pytest.param("beside the repository", marks=pytest.mark.extended), "anywhere"])
@pytest.mark.parametrize(
    "notebook",
    [pytest.param(each, marks=[pytest.mark.extended] * (each != NOTEBOOKS[0])) for each in NOTEBOOKS],
    ids=lambda notebook: notebook.stem,
)
def test_a_notebook_runs_to_its_end_and_shows_what_is_stored(notebook: Path, where: str, tmp_path: Path) -> None:
    folder = tmp_path if where == "anywhere" else FOLDER
    done = executed(notebook, folder, environment(tmp_path, PYTHONPATH=str(ROOT)))
    assert not [text for cell in cells(done) for text in cell["outputs"] if text.get("name") == "stderr"]
    assert any("rows done" in shown(cell) or " done,\n0 failed" in shown(cell) for cell in cells(done)), "a summary"
    if where != "anywhere" and any((parent / "shared/data").is_dir() for parent in FOLDER.parents):
        assert [kinds(cell) for cell in cells(done)] == [kinds(cell) for cell in cells(stored(notebook))]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_what_is_stored_is_small_and_knows_no_machine(notebook: Path) -> None:
    assert notebook.stat().st_size < MAX_STORED_BYTES
    assert "/tmp/" not in notebook.read_text() and "/root/" not in notebook.read_text()
    content = stored(notebook)
    assert "widgets" not in content["metadata"]
    assert "error" not in [kind for cell in cells(content) for kind in kinds(cell)]
    assert sum(bool(cell["outputs"]) for cell in cells(content)) > 4, "it was stored with what it shows"
    counts = [cell["execution_count"] for cell in cells(content)]
    assert counts == list(range(1, len(counts) + 1)), "it was run from top to bottom"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_the_first_cell_needs_the_installed_package_alone(notebook: Path) -> None:
    first = "".join(cells(stored(notebook))[0]["source"])
    assert first.startswith("# pip install gptj-batch\n") and "from pipelines import" in first
    assert "sys.path" not in notebook.read_text()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_renders_with_its_summary(notebook: Path) -> None:
    nbconvert = pytest.importorskip("nbconvert", reason="nbconvert is not installed")
    page, _ = nbconvert.HTMLExporter().from_filename(str(notebook))
    assert "0 failed" in page and "background: #3b6ea8" in page and "rows/s" in page
