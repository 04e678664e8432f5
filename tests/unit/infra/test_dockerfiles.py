"""The Dockerfiles, read and not built: bases, users, versions, and what a builder gets to see."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.specifiers import SpecifierSet

SECRET_NAMES = re.compile(r"token|secret|password|credential|access_key|api_key", re.IGNORECASE)
EXACT_TAG = re.compile(r"[\w./-]+:(?!latest)\w*\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")
CHANGES_FILES = {"RUN", "COPY", "ADD"}

GOOD = """
ARG BASE=docker.io/library/python:3.11.14-slim
FROM ${BASE} AS build
RUN make
FROM ${BASE}
COPY --from=build /a /a
USER 1000:1000
"""


class Instruction(NamedTuple):
    word: str
    rest: str


class Dockerfile:
    """A Dockerfile's instructions, continuation lines joined, and the defaults of its build arguments."""

    def __init__(self, text: str) -> None:
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        logical = "\n".join(lines).replace("\\\n", " ").splitlines()
        self.instructions = [Instruction(*line.split(maxsplit=1)) for line in logical]
        self.arguments = dict(each.rest.partition("=")[::2] for each in self.of("ARG"))

    def of(self, word: str) -> list[Instruction]:
        return [each for each in self.instructions if each.word == word]

    def last_stage(self) -> list[Instruction]:
        start = max(number for number, each in enumerate(self.instructions) if each.word == "FROM")
        return self.instructions[start:]

    def bases(self) -> list[str]:
        """What the stages start from, build arguments filled in."""
        return [self.filled(each.rest.split()[0]) for each in self.of("FROM")]

    def filled(self, text: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda match: self.arguments[match[1]], text)

    def environment(self) -> dict[str, str]:
        """The environment of a container of this image."""
        words = [word for each in self.last_stage() if each.word == "ENV" for word in each.rest.split()]
        return dict(word.split("=", maxsplit=1) for word in words)

    def sources(self) -> list[str]:
        """What is copied from the build context."""
        copies = [each.rest.split() for each in self.of("COPY") if not each.rest.startswith("--from")]
        return [source for words in copies for source in words[:-1]]


def faults(dockerfile: Dockerfile) -> list[str]:
    found = [f"{base} is not pinned by an exact tag" for base in dockerfile.bases() if not EXACT_TAG.fullmatch(base)]
    stage = dockerfile.last_stage()
    users = [number for number, each in enumerate(stage) if each.word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", stage[users[-1]].rest):
        found.append("the image does not end as a numbered user other than root")
    elif any(each.word in CHANGES_FILES for each in stage[users[-1] :]):
        found.append("files change after the user was set")
    if dockerfile.of("ADD"):
        found.append("ADD fetches and unpacks: COPY says what is meant")
    if any(re.search(r"(curl|wget)[^|]*\|\s*(ba)?sh", each.rest) for each in dockerfile.of("RUN")):
        found.append("a script from the network is run unread")
    if any(SECRET_NAMES.search(name) for name in [*dockerfile.arguments, *dockerfile.environment()]):
        found.append("a secret would stay in the image's history")
    return found


@pytest.fixture(params=["cpu", "gpu"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def path(repo, kind) -> Path:
    return repo / "infra" / "docker" / f"{kind}.Dockerfile"


@pytest.fixture
def dockerfile(path) -> Dockerfile:
    return Dockerfile(path.read_text("utf-8"))


def test_every_image_keeps_the_rules(dockerfile):
    assert faults(dockerfile) == []


def test_the_rules_have_nothing_against_a_good_image():
    assert faults(Dockerfile(GOOD)) == []


@pytest.mark.parametrize(
    ("good", "bad", "fault"),
    [
        ("python:3.11.14-slim", "python:latest", "not pinned"),
        ("python:3.11.14-slim", "python:3.11", "not pinned"),
        ("python:3.11.14-slim", "python", "not pinned"),
        ("USER 1000:1000", "", "other than root"),
        ("USER 1000:1000", "USER root", "other than root"),
        ("USER 1000:1000", "USER 1000:1000\nUSER 0", "other than root"),
        ("USER 1000:1000", "USER 1000:1000\nRUN make install", "after the user"),
        ("RUN make", "ADD https://example.com/a.tar.gz /a", "ADD"),
        ("RUN make", "RUN curl -s https://example.com/a.sh \\\n  | bash", "unread"),
        ("RUN make", "ARG HF_TOKEN", "secret"),
        ("USER 1000:1000", "ENV AWS_SECRET_ACCESS_KEY=x\nUSER 1000:1000", "secret"),
    ],
)
def test_a_bad_image_is_caught(good, bad, fault):
    found = faults(Dockerfile(GOOD.replace(good, bad)))
    assert found
    assert all(fault in each for each in found)


def test_torch_and_ray_are_the_ones_the_package_pins(dockerfile, pyproject):
    dependencies = pyproject["project"]["dependencies"]
    assert f"torch=={dockerfile.arguments['TORCH_VERSION']}" in dependencies
    assert f"ray[data,default]=={dockerfile.arguments['RAY_VERSION']}" in dependencies


def test_an_argument_has_the_same_default_in_every_stage(dockerfile):
    assert all(dockerfile.arguments[name] == value for name, _, value in _arguments(dockerfile))


def _arguments(dockerfile: Dockerfile) -> list[tuple[str, str, str]]:
    return [each.rest.partition("=") for each in dockerfile.of("ARG")]


def test_the_python_is_one_the_package_allows(dockerfile, pyproject):
    (version,) = {re.search(r"python:(\d+\.\d+\.\d+)", base)[1] for base in dockerfile.bases()}
    assert version.startswith("3.11.")
    assert version in SpecifierSet(pyproject["project"]["requires-python"])


def test_the_gpu_image_alone_takes_vllm_and_the_cuda_build(dockerfile, kind):
    installs = " ".join(each.rest for each in dockerfile.of("RUN"))
    assert ("[vllm]" in installs) == (kind == "gpu")
    assert ("TORCH_INDEX" in dockerfile.arguments) == (kind == "cpu")


def test_everything_is_installed_under_constraints(dockerfile, kind):
    installs = [text for each in dockerfile.of("RUN") for text in re.findall(r"pip install [^&]*", each.rest)]
    assert installs
    file = {"cpu": "constraints.txt", "gpu": "constraints-gpu.txt"}[kind]
    assert all(f"--constraint {file}" in text or "--no-deps" in text for text in installs)


def test_containers_are_offline_report_nothing_and_find_ray_on_the_path(dockerfile):
    environment = dockerfile.environment()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["PATH"].startswith("/opt/venv/bin:")


def test_the_gpus_of_a_node_are_not_handed_to_every_container(dockerfile):
    assert "NVIDIA_VISIBLE_DEVICES" not in dockerfile.environment()


def test_the_image_says_which_build_it_is(dockerfile):
    (label,) = dockerfile.of("LABEL")
    for name in ("VERSION", "REVISION", "RAY_VERSION", "TORCH_VERSION"):
        assert f"${{{name}}}" in label.rest


def test_the_build_gets_what_the_wheel_is_made_of(dockerfile, pyproject):
    project, wheel = pyproject["project"], pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], *wheel["packages"]}
    assert {source for source in dockerfile.sources() if not source.startswith("infra/")} == needed


def test_the_builder_sees_only_what_is_copied(dockerfile, path):
    ignore_file = path.with_name(f"{path.name}.dockerignore")
    rules = [line for line in ignore_file.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    shown = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert {re.sub(r"constraints.*\.txt", "constraints*.txt", source) for source in dockerfile.sources()} == shown
