"""The pins of the images: every package that gptj-batch needs at run time, at one version each.

The CPU pins are what a virtual environment has, where `pip install -e .` was run (development tools do no harm);
the GPU pins are what pip resolves for the `vllm` extra, from the package index alone (no CPU build of torch in reach):

    python infra/constraints.py > infra/constraints.txt
    pip lock '.[vllm]' -o /tmp/pylock.toml && python infra/constraints.py /tmp/pylock.toml > infra/constraints-gpu.txt
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"

CPU_HEADER = """\
# What the CPU image installs: the closure of [project.dependencies] in pyproject.toml on Linux and Python 3.11.
# Made, not written:  python infra/constraints.py > infra/constraints.txt
# torch stands without its local version (+cpu): which build is meant is the index's matter, not a constraint's.
"""

GPU_HEADER = """\
# What the GPU image installs: [project.dependencies] and the vllm extra, resolved by pip on Linux and Python 3.11.
# Made, not written; infra/constraints.py has the two commands. Resolved, but never installed where it was made.
# It differs from constraints.txt where vllm's own dependencies ask for older versions.
"""


def installed_closure(requirements: list[str]) -> dict[str, str]:
    """Return name -> public version of every installed package that the requirements lead to.

    Raises PackageNotFoundError when one that applies to this platform is not installed.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found = distribution(name)
        versions[name] = Version(found.version).public
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in found.requires or []]
    return versions


def locked(pylock: Path) -> dict[str, str]:
    """Return name -> version of every package in a pylock.toml but the project itself, which is a directory there."""
    packages = tomllib.loads(pylock.read_text(encoding="utf-8"))["packages"]
    return {package["name"]: Version(package["version"]).public for package in packages if "directory" not in package}


def main(arguments: list[str]) -> int:
    """Print a constraints file, of the pylock.toml named or else of this environment; return the exit code."""
    if arguments:
        header, versions = GPU_HEADER, locked(Path(arguments[0]))
    else:
        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
        try:
            header, versions = CPU_HEADER, installed_closure(project["dependencies"])
        except PackageNotFoundError as error:
            sys.stderr.write(f"{error.name} is not installed here: run `pip install -e .` in this environment first\n")
            return 1
    sys.stdout.write(header + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
