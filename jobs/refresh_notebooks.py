"""Run the notebooks and store what they show: `python -m jobs.refresh_notebooks`. It needs nbclient and ipykernel."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "notebooks"
TIMEOUT_S = 600
WIDGET = "application/vnd.jupyter.widget-view+json"


def executed(notebook: Path, folder: Path, env: Mapping[str, str]) -> Any:
    """Return a notebook with what its cells show, run from top to bottom in `folder`.

    Progress bars are left out: a widget is nothing without its kernel. Raises nbclient's CellExecutionError.
    """
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(content, timeout=TIMEOUT_S, kernel_name="python3", resources=resources).execute(env=dict(env))
    for cell in content.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    content.metadata.pop("widgets", None)
    content.metadata["language_info"] = {"name": "python"}
    return content


def main() -> None:
    """Store the outputs of every notebook."""
    import nbformat

    for notebook in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(notebook, FOLDER, os.environ), notebook)
        print(notebook, file=sys.stderr)


if __name__ == "__main__":
    main()
