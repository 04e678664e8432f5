"""The output folder: the names in it, and how a file appears in it whole or not at all."""

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

import pyarrow as pa

from gptj_batch.errors import ConfigError, OutputError, shorten
from gptj_batch.records.local_store import LocalStore
from gptj_batch.records.store import BucketPath, Store

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKETS = ("s3", "gs")
_PART = re.compile(r"part-\d{5,}(-\d+)?\.(parquet|arrow|jsonl(\.(gz|zst))?)")
_UNIT = re.compile(r"unit-(\d{8,})\.parquet")


@dataclass(frozen=True)
class OutputFolder:
    """An output folder; Parquet readers leave out everything in it whose name begins with "_"."""

    root: PurePath

    @classmethod
    def at(cls, output: str | PurePath) -> "OutputFolder":
        """Return the folder at `output`. Raises ConfigError for anything but a path of this machine or a bucket's."""
        if scheme := _URI.match(str(output)):
            return cls(_bucket_path(str(output), scheme[1]))
        return cls(Path(output).expanduser().absolute())

    @property
    def store(self) -> Store:
        """Return the store that the folder is in."""
        return store_of(self.root)

    @property
    def in_bucket(self) -> bool:
        """Say whether it is in a bucket."""
        return isinstance(self.root, BucketPath)

    @property
    def private(self) -> PurePath:
        """Return the folder that holds everything but the finished parts."""
        return self.root / "_gptj_batch"

    @property
    def units(self) -> PurePath:
        """Return the folder of finished units."""
        return self.private / "units"

    @property
    def staging(self) -> PurePath:
        """Return the folder of files that are being written."""
        return self.private / "staging"

    @property
    def retry(self) -> PurePath:
        """Return the folder of a retry that goes on or was cut off, see `records.retry`."""
        return self.private / "retry"

    @property
    def plan(self) -> PurePath:
        """Return the file that says which configuration made this output."""
        return self.private / "plan.json"

    @property
    def generation_file(self) -> PurePath:
        """Return the file that says how often the output was overwritten; absent for never."""
        return self.private / "generation"

    @property
    def generation(self) -> int:
        """Return how often the output was overwritten: the names of its parts tell it from what stood there before."""
        try:
            return int(self.store.read(self.generation_file))
        except (OSError, ValueError):
            return 0

    @property
    def success(self) -> PurePath:
        """Return the file that stands there when, and only when, the run is complete."""
        return self.root / "_SUCCESS"

    def unit(self, index: int) -> PurePath:
        """Return the file of one unit."""
        return self.units / f"unit-{index:08d}.parquet"

    def part(self, index: int, max_parts: int, ending: str = ".parquet", partition: str = "") -> PurePath:
        """Return the file of one part; the order of names is the order of parts, however many there are.

        partition: the part's folder below the output, as `partitions.split` names it
        """
        suffix = f"-{self.generation}" if self.generation else ""
        return self.root / partition / f"part-{index:0{max(5, len(str(max_parts - 1)))}d}{suffix}{ending}"

    def unit_indices(self) -> list[int]:
        """Return the numbers of the finished units, from one listing of names."""
        try:
            names = self.store.names(self.units)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(match[1]) for name in names if (match := _UNIT.fullmatch(name)))

    def parts(self) -> list[PurePath]:
        """Return the parts that are there, in order, those in the folders of partitions last."""
        folders = self.store.walk(self.root, _is_partition)
        return [folder / name for folder, names in folders for name in names if _PART.fullmatch(name)]

    def remove_empty_partitions(self) -> None:
        """Remove the folders of partitions, `column=value`, that hold nothing."""
        for folder, _ in reversed(self.store.walk(self.root, _is_partition)[1:]):
            self.store.remove_if_empty(folder)

    @contextmanager
    def whole_file(self, final: PurePath) -> Iterator[Path]:
        """Yield a path to write to, and move what was written to `final`; on any failure nothing of it is left.

        Raises OutputError naming `final`, the reason and the next step.
        """
        staged: Path | None = None
        try:
            staged = self.store.stage(self.staging, final)
            yield staged
            self.store.put(staged, final)
        except (OSError, pa.ArrowException) as error:
            raise not_written(final, error) from error
        finally:
            # Also when the move was none: two names of one file stay as they are.
            with suppress(OSError):
                if staged is not None:
                    staged.unlink(missing_ok=True)


def _bucket_path(uri: str, scheme: str) -> BucketPath:
    if scheme not in _BUCKETS:
        raise ConfigError(
            f"output.path: {scheme}:// is not written to; outputs are local, on a mounted file system, or in a bucket "
            "(s3://, gs://)"
        )
    path = BucketPath(uri)
    if "?" in uri or "@" in uri.removeprefix(f"{scheme}://").partition("/")[0] or len(path.parts) < 3:
        # What stands there is not repeated: it may be a secret.
        raise ConfigError(
            f"output.path: a place in a bucket is {scheme}://bucket/prefix, with a prefix and without options; "
            "credentials, AWS_REGION and AWS_ENDPOINT_URL are set in the environment"
        )
    return path


def store_of(path: PurePath) -> Store:
    """Return the store that a path is one of."""
    if not isinstance(path, BucketPath):
        return LocalStore()
    from gptj_batch.records.bucket_store import BucketStore  # loads obstore, only where it is needed

    return BucketStore.of(path.bucket)


def _is_partition(name: str) -> bool:
    return "=" in name and name[0] not in "._"


def not_written(path: PurePath, error: Exception) -> OutputError:
    """Return the error for a file that could not be stored, with the next step for its cause."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        step = f"Make room ({_free(path)} free there)"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        step = "Allow it to the run's credentials" if isinstance(path, BucketPath) else "Allow writing there"
    else:
        step = "Remove the cause"
    reason = shorten(" ".join(str(error).split()), 300)
    return OutputError(
        f"output.path: {path} cannot be written: {reason}. {step}, then run the same command again; "
        "finished units are kept"
    )


def _free(path: PurePath) -> str:
    if isinstance(path, BucketPath):  # files wait on this machine to be sent
        path = Path(tempfile.gettempdir()) / "staged"
    with suppress(OSError):
        folder = next(parent for parent in Path(path).parents if parent.exists())
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are"
    return "nothing is"
