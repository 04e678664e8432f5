from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from gptj_batch.errors import CheckpointError
from gptj_batch.model_folder import resolve_folder


def test_an_existing_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_folder(tmp_path) == tmp_path
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("owner/model") == Path("owner/model")


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_folder(tmp_path / "model.safetensors")


@pytest.mark.parametrize("path", ["gptj", "/no/such/folder", "../elsewhere/gptj", "a/b/c", "no such"])
def test_what_is_neither_folder_nor_hub_name_is_never_looked_up(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(CheckpointError, match="neither a folder nor a hub name"):
        resolve_folder(path)


def test_without_network_a_hub_name_gives_one_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"owner/model \(revision v2\).*could not be fetched"):
        resolve_folder("owner/model", "v2")


def test_errors_of_the_clients_http_library_do_not_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise Exception("Name or service not known")  # httpx.ConnectError is no OSError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="Name or service not known"):
        resolve_folder("owner/model")


def test_without_network_what_was_fetched_before_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--owner--model"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").touch()
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve_folder("owner/model") == snapshot


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_pickles_are_fetched_only_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    asked: list[list[str]] = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    (tmp_path / f"model.{ending}").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_folder("owner/model") == tmp_path
    assert ["pytorch_model*.bin" in patterns for patterns in asked] == [False, True][: 1 + (ending == "bin")]
    assert not any("*.msgpack" in patterns or "*.h5" in patterns for patterns in asked)
