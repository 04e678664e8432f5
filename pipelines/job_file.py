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
    places: dict[Location, str] = field(default_factory=dict)

    def place(self, location: Location) -> str:
        """Return "file:line:column", or the override, of a setting or of the innermost one around it that is there."""
        around = (location[:length] for length in range(len(location), -1, -1))
        return next((self.places[outer] for outer in around if outer in self.places), self.name)

    def note(self, location: Location, place: str) -> None:
        """Note where a setting now comes from; where the file had it and what is in it is forgotten."""
        self.places = {at: where for at, where in self.places.items() if at[: len(location)] != location}
        self.places[location] = place


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core scalars."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes what `_Loader` would not read as a text."""


# What PyYAML lets through where a value does not fit its explicit tag (`!!int x`), or the nesting has no end.
_NO_VALUE: Final = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
# Aliases may stand for aliases: a few lines of them can be more settings than there is memory.
MAX_PLACES: Final = 100_000

# (tag, pattern, first characters), after https://yaml.org/spec/1.2.2/#103-core-schema; no octal, hex, .inf, .nan
_SCALARS: Final = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
# PyYAML writes rare line breaks so that they are read as others, except between double quotes.
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    ),
)
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
        places: dict[Location, str] = {}
        if node is not None:
            _note_places(node, (), places, name)
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader: plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, *_NO_VALUE) as error:
        reason = f"{type(error).__name__}: {shorten(' '.join(str(error).split()), 200)}"
        raise ConfigError(f"{name}: not valid YAML: a value that cannot be read ({reason})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: a job file holds settings such as `name:`, `input:` and `task:`; this one does not")
    return JobFile(name, values, places)


def to_yaml(values: Any) -> str:
    """Return plain values as YAML that `parse_job` reads as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _note_places(node: yaml.Node, location: Location, places: dict[Location, str], name: str) -> None:
    places.setdefault(location, _place(name, node))
    if len(places) > MAX_PLACES:
        raise ConfigError(f"{_place(name, node)}: more than {MAX_PLACES} settings; a job file has a few dozen")
    if isinstance(node, yaml.ScalarNode) and not _is_unicode(node.value):
        raise ConfigError(
            f"{_place(name, node)}: half a surrogate pair (\\ud800 to \\udfff) is no character; write it as it is"
        )
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_places(item, (*location, index), places, name)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*location, str(key.value))
            if inner in places:
                setting = ".".join(map(str, inner))
                raise ConfigError(f"{_place(name, key)}: {setting} stands there twice, first at {places[inner]}")
            places[inner] = _place(name, key)
            _note_places(value, inner, places, name)


def _place(name: str, node: yaml.Node) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
        except (yaml.YAMLError, *_NO_VALUE):
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
        job.note(tuple(keys), f'override "{shorten(override)}"')
