"""Versions of what a run stands on, and the devices that are here."""

import platform
from importlib import metadata

PACKAGES = ("torch", "ray", "pyarrow", "tokenizers", "safetensors", "vllm")


def facts() -> dict[str, str]:
    """Return names and versions; a package that is not installed says so."""
    versions = {name: _version(name) for name in PACKAGES}
    return {**versions, "python": platform.python_version(), "devices": _devices()}


def _version(name: str) -> str:
    for distribution in (name, f"{name}-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _devices() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"no GPU; {torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"
