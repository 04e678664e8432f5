"""The store in a bucket (S3 or what speaks like it, Google Cloud Storage), by obstore.

An object is whole or not there by the service's own rule: one PUT, or an upload in parts that is nowhere to be seen
until its last request. Files are written to this machine's temporary folder first and sent from there, so that memory
is flat. Exclusive creation is a PUT on the condition that nothing is there (`If-None-Match: *`), and a lease is kept
alive by one on the condition that it is still the same (`If-Match`).

Credentials and the endpoint are the surroundings': AWS_* variables, a container's or machine's role. None is taken from
a path, logged or written down.
"""

import errno
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

from gptj_batch.errors import ConfigError
from gptj_batch.records.bucket_errors import as_os_errors, cannot_be_used, is_cut_off
from gptj_batch.records.bucket_reader import TRIES, ObjectReader, asked, key_of
from gptj_batch.records.store import Listing

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# What is sent or fetched at once, and how many of those: 32 MiB of memory for a file of any size.
_CHUNK_BYTES, _CHUNKS_AT_ONCE = 8 * 2**20, 4
_READ_BYTES = 2**20
# A burst of 503 is over in seconds; a service that is down for minutes ends the run, which can go on later.
_RETRIES: "RetryConfig" = {
    "max_retries": 10,
    "backoff": {"base": 2.0, "init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=8)},
    "retry_timeout": timedelta(seconds=60),
}
_FIRST_RETRIES: "RetryConfig" = {**_RETRIES, "max_retries": 6, "retry_timeout": timedelta(seconds=20)}
# A request that nothing comes of for so long is sent again.
_CLIENT: "ClientConfig" = {
    "allow_http": True,
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=60),
}
_COPIES_AT_ONCE = 8


class BucketStore:
    """The objects of one bucket; see `Store`. Paths are `BucketPath`s."""

    def __init__(self, client: Any, first_client: Any = None) -> None:
        self._client = client
        self._first_client = first_client or client

    @classmethod
    def of(cls, bucket: str) -> "BucketStore":
        """Return the store of a bucket, named by its URI."""
        return _connected(bucket, os.getpid(), _surroundings())

    def check(self, root: PurePath) -> None:
        """List one page below the output's place. Raises ConfigError where that cannot be done."""
        try:
            with as_os_errors("LIST", root):
                next(iter(obstore.list(self._first_client, f"{key_of(root)}/", chunk_size=1)), None)
        except OSError as error:
            raise ConfigError(cannot_be_used(root, error)) from None

    def stage(self, folder: PurePath, final: PurePath) -> Path:
        """Return a file in this machine's temporary folder."""
        descriptor, name = tempfile.mkstemp(prefix=f"gptj-batch-{final.stem}-", suffix=final.suffix)
        os.close(descriptor)
        return Path(name)

    def put(self, staged: Path, path: PurePath) -> None:
        """Send a file; in parts, where it is large."""
        with as_os_errors("PUT", path):
            obstore.put(self._client, key_of(path), staged, chunk_size=_CHUNK_BYTES, max_concurrency=_CHUNKS_AT_ONCE)

    def write(self, path: PurePath, data: bytes) -> None:
        """Send a note in one PUT."""
        with as_os_errors("PUT", path):
            obstore.put(self._client, key_of(path), data, use_multipart=False)

    def create(self, path: PurePath, data: bytes) -> bool:
        """PUT where there is nothing. A reply that was lost is made up for by looking at what is there."""
        try:
            with as_os_errors("PUT", path):
                obstore.put(self._client, key_of(path), data, mode="create", use_multipart=False)
        except FileExistsError:
            return self._holds(path, data)
        except OSError:
            with suppress(OSError):
                if self._holds(path, data):
                    return True
            raise
        return True

    def put_new(self, staged: Path, path: PurePath) -> bool:
        """PUT where there is nothing, in one request: an upload in parts knows no condition."""
        return self.create(path, staged.read_bytes())

    def _holds(self, path: PurePath, data: bytes) -> bool:
        try:
            return self.read(path) == data
        except FileNotFoundError:
            return False

    def touch(self, path: PurePath, data: bytes) -> None:
        """PUT the same again, if it is still the same."""
        for _ in range(TRIES):
            with as_os_errors("GET", path):
                found = obstore.get(self._client, key_of(path))
                meta, held = found.meta, bytes(found.bytes())
            if held != data:
                break
            same: Any = {name: value for name, value in meta.items() if name in ("e_tag", "version") and value}
            with suppress(PreconditionError, AlreadyExistsError), as_os_errors("PUT", path, PreconditionError):
                obstore.put(self._client, key_of(path), data, mode=same, use_multipart=False)
                return
            # Somebody was faster: another run, or a request of ours whose reply was lost.
        raise FileNotFoundError(f"{path} is not what it was")

    def modified(self, path: PurePath) -> float:
        """Return when the object was stored, to the second."""
        with as_os_errors("HEAD", path):
            modified = obstore.head(self._client, key_of(path))["last_modified"]
        return float(modified.timestamp())

    def now(self, path: PurePath) -> float:
        """Return when an object was stored that was sent just now; its name is nobody else's, who would remove it."""
        clock = path.with_name(f".{path.name}-{uuid4().hex}-now")
        self.write(clock, b"")
        try:
            return self.modified(clock)
        finally:
            with suppress(OSError):
                self.remove(clock)

    def read(self, path: PurePath) -> bytes:
        """Return the object's bytes."""
        return asked("GET", path, lambda: bytes(obstore.get(self._client, key_of(path)).bytes()))

    def source(self, path: PurePath) -> io.BufferedReader:
        """Return an open file that fetches what is read of it."""
        with as_os_errors("HEAD", path):
            size = obstore.head(self._client, key_of(path))["size"]
        return io.BufferedReader(ObjectReader(self._client, path, size), _READ_BYTES)

    def exists(self, path: PurePath) -> bool:
        """Tell whether the object is there."""
        try:
            with as_os_errors("HEAD", path):
                obstore.head(self._client, key_of(path))
        except FileNotFoundError:
            return False
        return True

    def is_folder(self, path: PurePath) -> bool:
        """Tell whether anything has a name below it."""
        pages = partial(obstore.list, self._client, f"{key_of(path)}/", chunk_size=1)
        return asked("LIST", path, lambda: any(len(page) for page in pages()))

    def names(self, folder: PurePath) -> list[str]:
        """Return the names of the objects and folders in a folder."""
        found = asked("LIST", folder, lambda: obstore.list_with_delimiter(self._client, f"{key_of(folder)}/"))
        inside = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        if not inside:
            raise FileNotFoundError(f"{folder} holds nothing")
        return sorted(name.rstrip("/").rpartition("/")[2] for name in inside)

    def walk(self, root: PurePath, is_wanted: Callable[[str], bool]) -> list[Listing]:
        """List all below `root`, without the names that begin with `_gptj_batch/`: there may be 10,000 folders."""
        folders: dict[tuple[str, ...], list[str]] = {(): []}
        with as_os_errors("LIST", root):
            for key in self._keys_below(key_of(root), "_gptj_batch/"):
                *parents, name = key.split("/")
                if all(map(is_wanted, parents)):
                    for depth in range(len(parents)):
                        folders.setdefault(tuple(parents[: depth + 1]), [])
                    folders[tuple(parents)].append(name)
        return [(root.joinpath(*parents), sorted(names)) for parents, names in sorted(folders.items())]

    def _keys_below(self, root: str, skipped: str) -> Iterator[str]:
        """Yield the keys below `root`, from there on, in order; those that begin with `skipped` are not even listed."""
        yield from takewhile(lambda key: key < skipped, self._keys(root, None))
        yield from self._keys(root, f"{root}/{skipped}\U0010ffff")

    def _keys(self, root: str, offset: str | None) -> Iterator[str]:
        for left in reversed(range(TRIES)):
            try:
                for page in obstore.list(self._client, f"{root}/", offset=offset, chunk_size=1000):
                    for each in page:
                        offset = each["path"]
                        yield offset.removeprefix(f"{root}/")
                return
            except GenericError as error:  # a reply cut off in its middle, which obstore does not ask for again
                if not (left and is_cut_off(error)):
                    raise

    def remove(self, path: PurePath) -> None:
        """Delete the object, and all whose names are below it."""
        with as_os_errors("DELETE", path):
            keys = [f"{key_of(path)}/{key}" for key in self._keys(key_of(path), None)]
            obstore.delete(self._client, [*keys, key_of(path)])

    def remove_files(self, paths: Iterable[PurePath]) -> None:
        """Delete a thousand with each request, where the service has one for many."""
        if not (doomed := list(paths)):
            return
        with as_os_errors("DELETE", doomed[0]):
            try:
                obstore.delete(self._client, [key_of(path) for path in doomed])
            except FileNotFoundError:  # which not every service says; those behind it may be there still
                for path in doomed:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._client, key_of(path))

    def move(self, files: Mapping[PurePath, PurePath]) -> None:
        """Copy all within the service, then delete."""
        self._copy_all(files.items())
        self.remove_files(files)

    def move_folder(self, source: PurePath, target: PurePath, seal: str) -> None:
        """Copy all within the service, the seal last; then delete, the seal first."""
        with as_os_errors("LIST", source):
            names, there = (set(self._keys(key_of(folder), None)) for folder in (source, target))
        if others := there - names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target / min(others)))
        self._copy_all((source / name, target / name) for name in sorted(names - {seal}))
        self.copy(source / seal, target / seal)
        self.remove_files([source / seal])
        self.remove(source)

    def _copy_all(self, files: Iterable[tuple[PurePath, PurePath]]) -> None:
        with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
            for _ in pool.map(lambda names: self.copy(*names), files):
                pass

    def remove_if_empty(self, folder: PurePath) -> None:
        """Do nothing: a folder is there as long as something is in it."""

    def copy(self, source: PurePath, target: PurePath) -> None:
        """Copy an object within the service."""
        with as_os_errors("COPY", target):
            obstore.copy(self._client, key_of(source), key_of(target))


def _surroundings() -> int:
    """Return a number that is another where what obstore reads is: a key that was corrected in a notebook is used."""
    return hash(frozenset(each for each in os.environ.items() if each[0].startswith(("AWS_", "GOOGLE_"))))


@lru_cache(maxsize=16)
def _connected(bucket: str, _process: int, _environment: int) -> BucketStore:
    """Return the store of a bucket; one for each process and its surroundings, which shares its connections."""
    from obstore.store import from_url

    first, then = (
        from_url(bucket, client_options=_CLIENT, retry_config=retries) for retries in (_FIRST_RETRIES, _RETRIES)
    )
    return BucketStore(then, first)
