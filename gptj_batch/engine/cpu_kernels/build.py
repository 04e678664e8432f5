"""Build the C++ kernels on first use, and find what was built before."""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import torch

SOURCE: Final = Path(__file__).with_name("kernels.cpp")
COMPILERS: Final = ("g++", "c++", "clang++")
FLAGS: Final = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
ELEMENTS: Final = {torch.float32: "float", torch.bfloat16: "uint16_t"}
MAX_BUILD_S: Final = 120


class KernelsUnavailable(Exception):  # noqa: N818 - a state of the machine, met by using torch
    """The kernels cannot be built or loaded here; its message says why. Plain torch does the work instead."""


def load_library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the kernels for one of ELEMENTS, compiled for this machine's CPU.

    A build takes about five seconds, once a machine and dtype, and is kept in ~/.cache/gptj_batch. Raises
    KernelsUnavailable, again and again without trying again.
    """
    library = _load_once(dtype)
    if isinstance(library, KernelsUnavailable):
        raise library
    return library


@cache
def _load_once(dtype: torch.dtype) -> ctypes.CDLL | KernelsUnavailable:
    try:
        return _load(ELEMENTS[dtype])
    except KernelsUnavailable as error:
        return error


def _load(element: str) -> ctypes.CDLL:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelsUnavailable(f"no C++ compiler ({', '.join(COMPILERS)}) was found; install g++")
    command = (compiler, *FLAGS, f"-DGPTJ_ELEMENT={element}")
    name = f"kernels-{_fingerprint(command)}.so"
    try:
        folder = _cache_folder()
        if folder is not None:
            return _load_from(folder / name, command)
        with tempfile.TemporaryDirectory(prefix="gptj_batch-kernels-") as temporary:
            return _load_from(Path(temporary) / name, command)  # once loaded, it needs its file no longer
    except OSError as error:
        raise KernelsUnavailable(f"there is nowhere to keep what {compiler} builds: {error}") from None


def _load_from(library: Path, command: Sequence[str]) -> ctypes.CDLL:
    if not library.exists():
        _build(command, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelsUnavailable(f"{library} cannot be loaded: {error}; remove it, so that it is built again") from None


def _build(command: Sequence[str], library: Path) -> None:
    """Compile beside the final place and move there, so that a process beside this one never loads half a file."""
    descriptor, unfinished = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(descriptor)
    try:
        _compile(command, unfinished)
        Path(unfinished).replace(library)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _compile(command: Sequence[str], output: str) -> None:
    compiler, whole = command[0], [*command, str(SOURCE), "-o", output]
    try:
        subprocess.run(whole, check=True, capture_output=True, timeout=MAX_BUILD_S)  # noqa: S603 - no user input
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise KernelsUnavailable(f"{compiler} could not build {SOURCE.name}: {lines[0][:200]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"{compiler} could not be run ({type(error).__name__})") from None


def _cache_folder() -> Path | None:
    """Return a folder that nobody but this user can write to, or None: what lies there is loaded and run."""
    try:
        folder = Path.home() / ".cache" / "gptj_batch"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return None
    is_private = found.st_uid == os.getuid() and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) == 0
    return folder if is_private and os.access(folder, os.W_OK) else None


def _fingerprint(command: Sequence[str]) -> str:
    """Return a name for this source, compiler, flags and CPU: a home may be shared by many machines."""
    try:
        version = subprocess.run([command[0], "--version"], capture_output=True, check=False, timeout=20).stdout  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        version = b""
    sources = b"".join(path.read_bytes() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h"))))
    parts = (sources, " ".join(command[1:]).encode(), version, _cpu_features().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cpu_features() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
