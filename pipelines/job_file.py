"""A job file: YAML in, plain values out, with the line of every key for messages.

YAML 1.2's scalars, so that `no` is a text and 010 is ten; duplicate keys are refused, where PyYAML would keep the last.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from gptj_batch.errors import ConfigError, shorten

Location = tuple[str | int, ...]


@dataclass
class JobFile:
    """The values of a job file and where each stands."""

    name: str
    values: dict[str, Any]
    places: dict[Location, tuple[int, int]] = field(default_factory=dict)

    def place(self, location: Location) -> str:
        """Return "file:line:column" of a setting, or of the innermost one around it that stands in the file."""
        for length in range(len(location), -1, -1):
            if location[:length] in self.places:
                line, column = self.places[location[:length]]
                return f"{self.name}:{line}:{column}"
        return self.name


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core scalars."""


# (tag, pattern, first characters), after https://yaml.org/spec/1.2.2/#103-core-schema
_SCALARS: Final = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value))


def read_job_file(path: str | Path) -> JobFile:
    """Read a job file. Raises ConfigError with the line for anything that is not one mapping of YAML."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"job file {file} cannot be read: {reason}") from None
    return parse_job(text, str(path))


def parse_job(text: str, name: str) -> JobFile:
    """Parse a job file's text; `name` is what messages call it."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        places: dict[Location, tuple[int, int]] = {}
        if node is not None:
            _note_places(node, (), places, name)
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader: plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {shorten(error, 200)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: a job file holds settings such as `name:`, `input:` and `task:`; this one does not")
    return JobFile(name, values, places)


def _note_places(node: yaml.Node, location: Location, places: dict[Location, tuple[int, int]], name: str) -> None:
    places.setdefault(location, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_places(item, (*location, index), places, name)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*location, str(key.value))
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if inner in places:
                setting = ".".join(map(str, inner))
                raise ConfigError(
                    f"{name}:{line}:{column}: {setting} stands there twice, first in line {places[inner][0]}"
                )
            places[inner] = (line, column)
            _note_places(value, inner, places, name)


def apply_overrides(job: JobFile, overrides: Sequence[str]) -> None:
    """Set `a.b=value` in the job's values; the value is read as YAML.

    Raises ConfigError for an override that is none, or that goes through something that is no mapping.
    """
    for override in overrides:
        setting, equals, text = override.partition("=")
        keys = setting.split(".")
        if not equals or not all(keys):
            raise ConfigError(f'override "{shorten(override)}" must have the form setting.name=value')
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError:
            value = text
        target = job.values
        for key in keys[:-1]:
            inner = target.get(key)
            if inner is None:
                inner = target[key] = {}
            if not isinstance(inner, dict):
                raise ConfigError(f'override "{shorten(override)}": {key} holds a value, not settings')
            target = inner
        target[keys[-1]] = value
