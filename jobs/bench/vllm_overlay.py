"""An environment with both: vLLM's packages, and behind them what they lack of this project's (Ray, PyArrow, pytest).

    python -m jobs.bench.vllm_overlay        # makes it in a second, and prints its interpreter

vLLM's own environment stays as it is. This project's needs another transformers, which only its tests use; of every
package that both have, vLLM's is taken.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

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


if __name__ == "__main__":
    print(overlay_python())
