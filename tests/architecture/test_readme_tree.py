"""README's tree: every folder it names is there, and every folder of source that is there is named."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOP = ("gptj_batch", "pipelines", "jobs", "tests", "infra")
MAX_DEPTH = 2


def named_folders(readme: str) -> dict[str, str]:
    """Folder -> what is said of it, from the first fenced block behind the heading."""
    behind = readme.split("\n## The tree\n", 1)[1]
    block = behind.split("```", 2)[1]
    lines = [line for line in block.splitlines()[1:] if line.strip()]
    matches = [re.fullmatch(r"(\S+)/\s+(\S.*)", line) for line in lines]
    assert None not in matches, [line for line, match in zip(lines, matches, strict=True) if match is None]
    return {match[1]: match[2] for match in matches if match is not None}


def folders_with_sources() -> set[str]:
    """Folders up to two deep that have Python files (a conftest.py serves those below); deeper ones count for them."""
    files = [file.relative_to(ROOT) for top in TOP for file in (ROOT / top).rglob("*.py") if file.name != "conftest.py"]
    return {"/".join(file.parent.parts[:MAX_DEPTH]) for file in files}


NAMED = named_folders((ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_folder_that_the_readme_names_is_there() -> None:
    assert [folder for folder in NAMED if not (ROOT / folder).is_dir()] == []


def test_every_folder_of_sources_is_named() -> None:
    assert folders_with_sources() - set(NAMED) == set()


def test_a_line_is_a_folder_and_a_few_words() -> None:
    assert all(len(words) <= 80 for words in NAMED.values())


def test_the_parser_sees_what_is_missing() -> None:
    text = "# x\n\n## The tree\n\n```\na/b/   what\nc/     other\n```\n\n```\nd/ no\n```\n"
    assert named_folders(text) == {"a/b": "what", "c": "other"}
