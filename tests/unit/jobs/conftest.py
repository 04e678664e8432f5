"""Fixtures of whole runs without Ray."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from unit.records.cut_store import MemoryBucket
from unit.records.s3_endpoint import Endpoint, running_endpoint
from whole_runs import BUCKET, OUT, TEXTS, Spine, write

import jobs.run
from gptj_batch.records.bucket_store import BucketStore
from gptj_batch.records.output import OutputFolder


@pytest.fixture
def spine(monkeypatch: pytest.MonkeyPatch) -> Spine:
    spine = Spine()
    monkeypatch.setattr(jobs.run, "_run_units", spine)
    monkeypatch.setattr(jobs.run, "connected", lambda address: nullcontext())
    return spine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, TEXTS)
    return tmp_path


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with running_endpoint() as endpoint:
        endpoint.make_bucket(BUCKET.removeprefix("s3://"))
        yield endpoint


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint) -> MemoryBucket:
    """A bucket without an output at OUT."""
    store = BucketStore.of(BUCKET)
    store.remove(OutputFolder.at(OUT).root)
    return MemoryBucket(monkeypatch, store._client)
