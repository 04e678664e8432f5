"""The pins of the images: made from what is installed, exact, closed, and no wider than the package allows."""

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

IMAGE = {  # what the pins are for, whatever this machine is
    "extra": "",
    "python_version": "3.11",
    "python_full_version": "3.11.14",
    "sys_platform": "linux",
    "platform_system": "Linux",
}
ONLY_FOR_DEVELOPMENT = {"hypothesis", "import-linter", "mypy", "pre-commit", "pytest", "ruff", "kubernetes-validate"}


def read_pins(text: str) -> dict[str, Version]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.fixture(params=["constraints.txt", "constraints-gpu.txt"])
def pins(request, repo) -> dict[str, Version]:
    return read_pins((repo / "infra" / request.param).read_text("utf-8"))


@pytest.fixture
def script(repo):
    spec = importlib.util.spec_from_file_location("infra_constraints", repo / "infra" / "constraints.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_dependency_of_the_package_is_pinned_within_its_bounds(pins, pyproject):
    for requirement in map(Requirement, pyproject["project"]["dependencies"]):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_no_pin_names_one_build_of_a_release(pins):
    assert not [name for name, version in pins.items() if version.local]


def test_no_development_tool_is_pinned(pins):
    assert not ONLY_FOR_DEVELOPMENT & pins.keys()


def test_what_a_pinned_package_needs_is_pinned_too(pins):
    for name, version in pins.items():
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if Version(Version(found.version).public) != version:
            continue  # another release is installed here: its needs say nothing of the pinned one's
        for requirement in map(Requirement, found.requires or []):
            if requirement.marker is None or requirement.marker.evaluate(IMAGE):
                assert pins[canonicalize_name(requirement.name)] in requirement.specifier, f"{name} needs {requirement}"


def test_the_gpu_pins_hold_vllm_and_the_cuda_wheels_of_torch(repo, pyproject):
    pins = read_pins((repo / "infra" / "constraints-gpu.txt").read_text("utf-8"))
    (vllm,) = map(Requirement, pyproject["project"]["optional-dependencies"]["vllm"])
    assert pins["vllm"] in vllm.specifier
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "triton"} <= pins.keys()


def test_the_script_follows_requirements_through_extras(script):
    versions = script.installed_closure(["ray[default]", "never-installed; python_version < '3'"])
    assert {"ray", "aiohttp", "yarl"} <= versions.keys()
    assert "never-installed" not in versions


def test_the_script_reads_a_lock_and_leaves_the_project_itself_out(script, tmp_path):
    path = tmp_path / "pylock.toml"
    path.write_text(
        '[[packages]]\nname = "torch"\nversion = "2.13.0+cpu"\n[[packages]]\nname = "gptj-batch"\ndirectory = {}\n',
        encoding="utf-8",
    )
    assert script.locked(path) == {"torch": "2.13.0"}


def test_the_script_says_what_to_install_when_it_finds_nothing(script, monkeypatch, tmp_path, capsys):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\ndependencies = ["never-installed"]\n', encoding="utf-8")
    monkeypatch.setattr(script, "PYPROJECT", pyproject)
    assert script.main([]) == 1
    assert "never-installed is not installed here" in capsys.readouterr().err
