"""Reading an object of a bucket: as a file whose reads each fetch their range, and again where a reply is cut off."""

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import PurePath
from typing import Any, TypeVar

import obstore
from obstore.exceptions import GenericError

from gptj_batch.records.bucket_errors import as_os_errors, is_cut_off
from gptj_batch.records.store import BucketPath

TRIES = 4
_T = TypeVar("_T")


class ObjectReader(io.RawIOBase):
    """An object as a file: each read fetches its range."""

    def __init__(self, client: Any, path: PurePath, size: int) -> None:
        self._client, self._path, self._size, self._place = client, path, size, 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, and return it."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fetch what fits into a buffer, and return its length in bytes."""
        length = max(min(len(buffer), self._size - self._place), 0)
        if length:
            fetch = partial(obstore.get_range, self._client, key_of(self._path), start=self._place, length=length)
            found = asked("GET", self._path, fetch)
            buffer[:length] = memoryview(found)
            self._place += length
        return length


def asked(action: str, path: PurePath, ask: Callable[[], _T]) -> _T:
    """Return the answer to a question, asked again where its reply was cut off in the middle. Raises OSError."""
    with as_os_errors(action, path):
        for _ in range(TRIES - 1):
            try:
                return ask()
            except GenericError as error:
                if not is_cut_off(error):
                    raise
        return ask()


def key_of(path: PurePath) -> str:
    """Return what the bucket calls a place."""
    assert isinstance(path, BucketPath), "the paths of a bucket's store are the bucket's"
    return path.key
