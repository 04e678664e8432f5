"""What is wrong with a job file, in a line each: where, which setting, the rule, what was found, what to do."""

from collections import defaultdict
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gptj_batch.errors import shorten
from pipelines.job_file import JobFile, Location

# What a value must be, where pydantic says it in words of Python.
_TYPES = {
    "string_type": "a text", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "tuple_type": "a list", "dict_type": "a mapping",
}  # fmt: skip


def problems(file: JobFile, error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Return a line for everything that pydantic found in the file's values, which should make a `root`."""
    located = [
        (_location(tuple(details["loc"]), details["type"], file.values), details)
        for details in error.errors(include_url=False)
    ]
    around = {location[:length] for location, _ in located for length in range(len(location))}
    lines: list[str] = []
    types: dict[Location, list[str]] = defaultdict(list)
    for location, details in located:
        if details["type"] not in _TYPES or "[key]" in details["loc"]:
            lines.append(_line(file, location, _rule(location, details, file.values, root)))
        elif location not in around:  # else it is right so far, and one of its items is not
            types[location].append(_TYPES[details["type"]])
    for location, names in types.items():
        value = _value(file.values, location)
        hint = "; put a text in quotes" if isinstance(value, dict | bool | int | float) and "a text" in names else ""
        lines.append(_line(file, location, f"must be {' or '.join(names)}, got {_shown(value)}{hint}"))
    return list(dict.fromkeys(lines))


def _line(file: JobFile, location: Location, rule: str) -> str:
    return f"{file.place(location)}: {'.'.join(map(str, location)) or 'the job'}: {rule}"


def _rule(location: Location, details: Any, values: Any, root: type[BaseModel]) -> str:
    kind, found = details["type"], _shown(details["input"])
    if kind == "extra_forbidden":
        return f"no such setting{_nearest(location, values, root)}"
    if kind == "missing":
        return "is missing; it must be set"
    if kind == "value_error":
        return str(details["ctx"]["error"])
    if kind == "invalid_key" or "[key]" in details["loc"]:
        return f"a name must be a text, got {shorten(repr(details['input']))}; put it in quotes"
    if kind in ("model_type", "model_attributes_type", "union_tag_not_found"):
        names = known_settings(root, location, values)[:3] or ["kind"]
        return f"must hold settings, such as {', '.join(names)}; got {found}"
    if kind == "too_short":
        return f"must have at least {details['ctx']['min_length']} items, got {details['ctx']['actual_length']}"
    if kind == "string_too_short":
        return "must not be empty"
    return f"{details['msg'].replace('Input should', 'must', 1)}, got {found}"


def _shown(value: Any) -> str:
    """Return a value for a message; what holds others only by its kind."""
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else shorten(repr(value))


def _location(parts: tuple[str | int, ...], kind: str, values: Any) -> Location:
    """Return where an error is, without what pydantic adds for kinds and alternatives: the file has no such names."""
    location: list[str | int] = []
    for index, part in enumerate(parts):
        if isinstance(values, dict) and part in values:
            values = values[part]
            location.append(str(part))
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
            location.append(part)
        elif kind == "missing" and index == len(parts) - 1:
            location.append(part)
    return tuple(location)


def _value(values: Any, location: Location) -> Any:
    for part in location:
        inner: Any = {str(key): value for key, value in values.items()} if isinstance(values, dict) else values
        values = inner[part]
    return values


def _nearest(location: Location, values: Any, root: type[BaseModel]) -> str:
    """Return a hint with the nearest setting that there is beside an unknown one, or in another block."""
    known = known_settings(root, location[:-1], values)
    name = str(location[-1])
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {'.'.join(map(str, (*location[:-1], near[0])))}?"
    elsewhere = [f"{block}.{name}" for block in root.model_fields if name in known_settings(root, (block,), values)]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; there are {', '.join(known)}" if known else ""


def known_settings(root: type[BaseModel], location: Location, values: Any) -> list[str]:
    """Return the names of the settings in a block; those of `task` go by its kind and method."""
    model: Any = root
    for part in location:
        if not _is_model(model) or part not in model.model_fields:
            return []
        model = model.model_fields[str(part)].annotation
        if get_origin(model) is not None:
            task = values.get("task")
            options = [get_args(option)[0] if get_origin(option) else option for option in get_args(model)]
            model = next((option for option in options if _is_for(option, task)), None)
    return list(model.model_fields) if _is_model(model) else []


def _is_for(option: Any, task: Any) -> bool:
    """Say whether a class of settings is that of a task's kind and, where it has one, method."""
    if not (_is_model(option) and isinstance(task, dict) and "kind" in option.model_fields):
        return False
    told = {name: option.model_fields[name] for name in ("kind", "method") if name in option.model_fields}
    return all(task.get(name, field.default) in get_args(field.annotation) for name, field in told.items())


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
