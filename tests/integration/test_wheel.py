"""The built wheel, in an environment that has nothing else: what a user gets from `pip install`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow, pytest.mark.extended]
ROOT = Path(__file__).parents[2]


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """Run a command outside the repository, without the test's own Python path; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "RAY_"))}
    done = subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def link_torch(folder: Path) -> None:
    """Put this environment's torch, and what CUDA builds bring along, into another: pip finds it and copies nothing."""
    for name in ("torch", "torchgen", "functorch", "triton", "nvidia"):
        for path in Path(torch.__file__).parents[1].glob(f"{name}*"):
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it, with its own requirements alone, into a new environment; torch is linked."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT], folder)
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", folder / "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    link_torch(Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    run([*pip, "-c", ROOT / "infra/constraints.txt", wheel], folder)
    return folder


def test_the_installed_wheel_runs_the_demo_from_another_folder(installed: Path) -> None:
    elsewhere = installed / "elsewhere"
    elsewhere.mkdir()
    bin_folder = installed / "venv" / "bin"
    where = run([bin_folder / "python", "-c", "import gptj_batch; print(gptj_batch.__file__)"], elsewhere)
    assert str(installed / "venv") in where

    printed = run([bin_folder / "gptj-batch", "demo"], elsewhere)

    assert "rows/s" in printed
    for name in ("classify", "generate", "extract"):
        folder = elsewhere / "out" / "demo" / name
        report = json.loads((folder / "_gptj_batch" / "run.json").read_text())
        assert (folder / "_SUCCESS").exists()
        assert report["failed"] == 0
        assert sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*.parquet")) == report["rows"] >= 300


def test_the_installed_wheel_needs_neither_transformers_nor_the_repository(installed: Path) -> None:
    python = installed / "venv" / "bin" / "python"
    absent = "('transformers', 'tests', 'pytest')"
    code = f"from importlib.util import find_spec; print([find_spec(name) is None for name in {absent}])"
    assert run([python, "-c", code], installed).strip() == "[True, True, True]"
    assert "gptj-batch" in run([installed / "venv" / "bin" / "gptj-batch", "version"], installed)
