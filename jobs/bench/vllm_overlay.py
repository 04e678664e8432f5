"""An environment with both: vLLM's packages, and behind them what they lack of this project's (Ray, PyArrow, pytest).

    python -m jobs.bench.vllm_overlay -m pytest tests/parity/test_vllm_heads.py     # makes it in a second; runs that

Where vLLM's environment could not be made, nothing is run and the reason is said.

vLLM's own environment stays as it is. This project's needs another transformers, which only its tests use; of every
package that both have, vLLM's is taken.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from jobs.bench.protocol import ROOT, WorkerError
from jobs.bench.vllm_env import vllm_folder, vllm_python


def overlay_python() -> Path:
    """Return the interpreter of the environment, which is made where it is missing or holds others' packages.

    Raises WorkerError where vLLM's environment is missing.
    """
    theirs = subprocess.run(  # noqa: S603 - vLLM's interpreter
        [str(vllm_python()), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    ours = sysconfig.get_path("purelib")
    folder = vllm_folder().with_name(f"{vllm_folder().name}-with-gptj-batch")
    python = folder / "bin" / "python"
    paths = f"{theirs}\n{ours}\n"
    file = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages" / "both.pth"
    if not python.exists() or not file.exists() or file.read_text() != paths:
        subprocess.run(  # noqa: S603 - ourselves
            [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True, capture_output=True
        )
        file.write_text(paths)
    return python


def main(arguments: Sequence[str]) -> None:
    """Become the environment's interpreter with these arguments, this project's sources first on its path."""
    try:
        python = str(overlay_python())
    except WorkerError as error:
        print(f"left out: {error}")
        return
    os.execve(python, [python, *arguments], {**os.environ, "PYTHONPATH": str(ROOT)})  # noqa: S606 - that is what it is for


if __name__ == "__main__":
    main(sys.argv[1:])
