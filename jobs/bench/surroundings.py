"""What a measurement stands on, commit, hardware and versions; and where its figures are kept."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"


def surroundings(threads: int) -> dict[str, Any]:
    """Return commit, hardware and versions; the peers' versions stand with their legs."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        # The results are no change: a benchmark of several rounds writes them after each.
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--untracked-files=no", ":/", ":!/jobs/bench/results")
        ),
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads_each": threads,
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {"torch": version("torch"), "python": platform.python_version()},
    }


def write_results(report: dict[str, Any], name: str) -> Path:
    """Write a benchmark's JSON; return where it is."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    return file


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
