"""Fixtures of whole runs without Ray."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from whole_runs import TEXTS, Spine, write

import jobs.run


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
