"""The output folder: the names in it, and how a file appears in it whole or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from gptj_batch.errors import ConfigError, OutputError, shorten

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PART = re.compile(r"part-\d{5,}(-\d+)?\.(parquet|arrow|jsonl(\.(gz|zst))?)")
_UNIT = re.compile(r"unit-(\d{8,})\.parquet")


@dataclass(frozen=True)
class OutputFolder:
    """An output folder; Parquet readers leave out everything in it whose name begins with "_"."""

    root: Path

    @classmethod
    def at(cls, output: str | Path) -> "OutputFolder":
        """Return the folder at `output`. Raises ConfigError for anything but a path of this machine."""
        if scheme := _URI.match(str(output)):
            raise ConfigError(
                f"output.path: {scheme[1]}:// is not written to; outputs are local or on a mounted file system in this "
                "version"
            )
        return cls(Path(output).expanduser().absolute())

    @property
    def private(self) -> Path:
        """Return the folder that holds everything but the finished parts."""
        return self.root / "_gptj_batch"

    @property
    def units(self) -> Path:
        """Return the folder of finished units."""
        return self.private / "units"

    @property
    def staging(self) -> Path:
        """Return the folder of files that are being written."""
        return self.private / "staging"

    @property
    def plan(self) -> Path:
        """Return the file that says which configuration made this output."""
        return self.private / "plan.json"

    @property
    def generation_file(self) -> Path:
        """Return the file that says how often the output was overwritten; absent for never."""
        return self.private / "generation"

    @property
    def generation(self) -> int:
        """Return how often the output was overwritten: the names of its parts tell it from what stood there before."""
        try:
            return int(self.generation_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0

    @property
    def success(self) -> Path:
        """Return the file that stands there when, and only when, the run is complete."""
        return self.root / "_SUCCESS"

    def unit(self, index: int) -> Path:
        """Return the file of one unit."""
        return self.units / f"unit-{index:08d}.parquet"

    def part(self, index: int, max_parts: int, ending: str = ".parquet", partition: str = "") -> Path:
        """Return the file of one part; the order of names is the order of parts, however many there are.

        partition: the part's folder below the output, as `partitions.split` names it
        """
        suffix = f"-{self.generation}" if self.generation else ""
        return self.root / partition / f"part-{index:0{max(5, len(str(max_parts - 1)))}d}{suffix}{ending}"

    def unit_indices(self) -> list[int]:
        """Return the numbers of the finished units, from one listing of names."""
        return sorted(int(match[1]) for name in _names(self.units) if (match := _UNIT.fullmatch(name)))

    def parts(self) -> list[Path]:
        """Return the parts that are there, in order, those in the folders of partitions last."""
        return [part for folder in (self.root, *self.partitions()) for part in _parts_in(folder)]

    def partitions(self) -> list[Path]:
        """Return the folders of partitions, `column=value`, each before those inside it."""
        return list(_partitions_below(self.root))

    def remove_empty_partitions(self) -> None:
        """Remove the folders of partitions that hold nothing."""
        for path in reversed(self.partitions()):
            with suppress(OSError):
                path.rmdir()

    @contextmanager
    def whole_file(self, final: Path) -> Iterator[Path]:
        """Yield a path to write to, and move what was written to `final`; on any failure nothing of it is left.

        Raises OutputError naming `final`, the reason and the next step.
        """
        staged = self.staging / f"{final.stem}-{uuid4().hex}{final.suffix}"
        try:
            self.staging.mkdir(parents=True, exist_ok=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            yield staged
            _sync(staged)
            staged.replace(final)
            with suppress(OSError):  # some mounted file systems cannot sync a folder
                _sync(final.parent)
        except (OSError, pa.ArrowException) as error:
            raise not_written(final, error) from error
        finally:
            # Also when the move was none: two names of one file stay as they are.
            with suppress(OSError):
                staged.unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _parts_in(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(_names(folder)) if _PART.fullmatch(name)]


def _partitions_below(folder: Path) -> Iterator[Path]:
    for name in sorted(_names(folder)):
        path = folder / name
        if "=" in name and name[0] not in "._" and path.is_dir() and not path.is_symlink():
            yield path
            yield from _partitions_below(path)


def _sync(path: Path) -> None:
    """Bring a file or folder onto the disk, so that a machine that loses power keeps it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def not_written(path: Path, error: Exception) -> OutputError:
    """Return the error for a file that could not be stored, with the next step for its cause."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        step = f"Make room ({_free(path)} free there)"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        step = "Allow writing there"
    else:
        step = "Remove the cause"
    reason = shorten(" ".join(str(error).split()), 300)
    return OutputError(
        f"output.path: {path} cannot be written: {reason}. {step}, then run the same command again; "
        "finished units are kept"
    )


def _free(path: Path) -> str:
    with suppress(OSError):
        folder = next(parent for parent in path.parents if parent.exists())
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are"
    return "nothing is"
