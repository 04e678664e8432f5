"""A bucket, in memory or not, and a process that ends between two of its changes, or with half of a removal done."""

from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

from obstore.store import MemoryStore
from pytest import MonkeyPatch

from gptj_batch.records.bucket_store import BucketStore


class Cut(Exception):
    """A process that ends here."""


class CutStore(BucketStore):
    """A store whose process ends before its n-th change; where that removes, half of it is gone."""

    def __init__(self, client: Any, left: int) -> None:
        super().__init__(client)
        self.left = left

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cut

    def put(self, staged: Path, path: PurePath) -> None:
        self._step()
        super().put(staged, path)

    def write(self, path: PurePath, data: bytes) -> None:
        self._step()
        super().write(path, data)

    def create(self, path: PurePath, data: bytes) -> bool:
        self._step()
        return super().create(path, data)

    def copy(self, source: PurePath, target: PurePath) -> None:
        self._step()
        super().copy(source, target)

    def remove(self, path: PurePath) -> None:
        inside = [folder / name for folder, names in self.walk(path, lambda _: True) for name in names]
        self._step_half(inside)
        super().remove(path)

    def remove_files(self, paths: Iterable[PurePath]) -> None:
        doomed = list(paths)
        self._step_half(doomed)
        super().remove_files(doomed)

    def _step_half(self, doomed: list[PurePath]) -> None:
        if self.left == 0:
            super().remove_files(doomed[: len(doomed) // 2])
        self._step()


class MemoryBucket:
    """What all buckets of this process are: one in its memory, or that of a client."""

    def __init__(self, monkeypatch: MonkeyPatch, client: Any = None) -> None:
        self._client, self._monkeypatch = client or MemoryStore(), monkeypatch
        self._be(BucketStore(self._client))

    def killed_before_change(self, number: int, action: Callable[[], object]) -> bool:
        """Run `action`, which ends before change `number`; False where it got through."""
        self._be(CutStore(self._client, number - 1))
        try:
            action()
            return False
        except Cut:
            return True
        finally:
            self._be(BucketStore(self._client))

    def _be(self, store: BucketStore) -> None:
        self._monkeypatch.setattr(BucketStore, "of", lambda bucket: store)
