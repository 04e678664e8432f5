"""The arguments of a notebook function, and the job that they describe."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gptj_batch.errors import ConfigError, GPTJBatchError
from pipelines.config import OF_OTHER_TASKS, Job, check_job
from pipelines.job_file import JobFile
from pipelines.problems import known_settings

# Where each argument stands in a job file.
SETTINGS = {
    "key": "input.key",
    "columns": "input.columns",
    "format": "input.format",
    "model": "model.path",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "backend": "backend.kind",
    "output": "output.path",
    "on_exists": "output.on_exists",
    "prefix": "output.prefix",
}
OTHERS = ("replicas", "progress")
# A job has an output; where nothing is written, nothing asks for it.
NOWHERE = "nowhere"


def make_job(kind: str, path: Any, arguments: Mapping[str, Any]) -> Job:
    """Return the job that a call describes; `path` is what it reads, None for a table in memory.

    Raises ConfigError naming every argument that is wrong.
    """
    task = {"kind": kind}
    values: dict[str, Any] = {
        "name": f"notebook-{kind}",
        "input": {"path": path or NOWHERE},
        "output": {},
        "task": task,
    }
    for name, value in arguments.items():
        if name == "replicas":
            continue
        if name == "output" and isinstance(value, dict):
            values["output"].update(_output(value))
            continue
        block, _, setting = SETTINGS.get(name, f"task.{name}").partition(".")
        if value is not None or block == "task":
            values.setdefault(block, {})[setting] = _plain(value)
    for block in ("backend", "replicas"):
        values[block] = _block(block, values.get(block, {}), _plain(arguments.get(block)))
    values["output"].setdefault("path", NOWHERE)
    _check_names(kind, values)
    return check_job(JobFile(f"{kind}()", values))


def _output(given: dict[str, Any]) -> dict[str, Any]:
    """Return a block `output` that was given whole. Raises ConfigError where it does not say where to write."""
    if given.get("path") is None:
        raise ConfigError('output: a dictionary needs "path", the folder to write to; give it, or a folder alone')
    plain: dict[str, Any] = {name: _plain(value) for name, value in given.items()}
    return plain


def is_written(job: Job) -> bool:
    """Tell whether a call asks for its result to be written."""
    return job.output.path != NOWHERE


def _block(name: str, values: dict[str, Any], given: Any) -> dict[str, Any]:
    """Return a block's settings where an argument is all of them, or the one that is mostly meant."""
    if given is None or isinstance(given, dict):
        return {} if given is None else given
    if name == "backend":
        return values
    return {"min": given, "max": given}


def _plain(value: Any) -> Any:
    """Return numpy's numbers and arrays, and pandas' columns, as Python's; and a path as text."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    as_list = getattr(value, "tolist", None) or getattr(value, "to_list", None)
    return value if as_list is None else as_list()


def _check_names(kind: str, values: Mapping[str, Any]) -> None:
    """Raise ConfigError for an argument that there is not, with the nearest that there is."""
    of_task = known_settings(Job, ("task",), values)
    if not of_task:
        return  # a kind or method that is refused by its own message
    known = [name for name in of_task if name != "kind"] + [*SETTINGS, *OTHERS]
    elsewhere = {name.partition(".")[2] for name in OF_OTHER_TASKS}
    lines = []
    for name in values["task"]:
        if name not in known and name not in elsewhere and name != "kind":
            near = get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            lines.append(f"{kind}(): {name}: no such argument; {hint}")
    if lines:
        raise ConfigError("\n".join(lines))


_RENAMED = [
    (re.compile(r" with input\.columns"), ""),
    *((re.compile(rf"\b{re.escape(setting)}\b"), name) for name, setting in SETTINGS.items()),
    (re.compile(r"\btask\.(\w+)"), r"\1"),
]


@contextmanager
def argument_names(kind: str) -> Iterator[None]:
    """Let messages about a job's settings speak of the arguments that they came from."""
    try:
        yield
    except GPTJBatchError as error:
        text = str(error)
        for pattern, name in _RENAMED:
            text = pattern.sub(name, text)
        if not text.startswith(f"{kind}()"):
            text = f"{kind}(): {text}"
        raise type(error)(text) from error.__cause__
