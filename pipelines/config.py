"""A job's whole configuration: what is read, done, with which model, how, and where the result goes."""

import copy
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from gptj_batch.errors import ConfigError, shorten
from gptj_batch.tasks.base import Settings
from gptj_batch.tasks.registry import TaskSettings
from pipelines.job_file import JobFile, apply_overrides, read_job_file, to_yaml
from pipelines.problems import known_settings, problems
from pipelines.settings import (
    BackendSettings,
    DriftSettings,
    ErrorSettings,
    InputSettings,
    ModelSettings,
    OutputSettings,
    ReplicaSettings,
    listed,
)

# Settings of other tasks or methods: better said than called unknown.
# Each with the values that ask for nothing, which are let through, and what to say of any other.
OF_OTHER_TASKS: dict[str, tuple[tuple[Any, ...], str]] = {
    "task.num_beams": ((None, 1), "it belongs to `generate`"),
    "task.length_penalty": ((None, 1.0), "it belongs to `generate`"),
    "task.early_stopping": ((None, False), "it belongs to `generate`"),
    "task.choices": ((None,), "it belongs to `generate`; `classify` has labels"),
    "task.regex": ((None,), "it belongs to `generate`"),
    "task.json_schema": ((None,), "it belongs to `generate`"),
    "task.calibrate": ((None, "none"), "it belongs to `classify` with method prompt"),
    "task.text": ((None,), "it belongs to `classify` with method head, to `score` and to `embed`"),
    "task.top_k": (
        (None, 0),
        "it belongs to `classify`, to `extract` with method head and to `generate`; by prompt, max_answers is as many",
    ),
    "task.multi_label_threshold": ((None,), "it belongs to `classify` with method head"),
    "task.prompt": ((None,), "it belongs to `generate`, and to `classify` and `extract` with method prompt"),
    "task.question": ((None,), "it belongs to `extract` with method head; with method prompt it is part of the prompt"),
    "task.max_answers": ((None, 1), "it belongs to `extract` with method prompt; by head, top_k is as many answers"),
    "task.labels": ((None,), "it belongs to `classify` with method prompt; a trained head brings its own labels"),
    "task.likelihood": ((None, "sum"), "it belongs to `classify` with method prompt"),
}
KINDS = ("generate", "classify", "extract", "score", "embed")
METHODS = {"classify": ("prompt", "head"), "extract": ("head", "prompt")}


class Job(Settings):
    """A whole job."""

    name: str
    """Lower-case letters, digits, dots, dashes and underscores."""
    input: InputSettings
    task: TaskSettings
    model: ModelSettings = ModelSettings()
    backend: BackendSettings = BackendSettings()
    replicas: ReplicaSettings = ReplicaSettings()
    output: OutputSettings
    errors: ErrorSettings = ErrorSettings()
    drift: DriftSettings = DriftSettings()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", value):
            raise ValueError("must be 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit")
        return value

    def to_yaml(self) -> str:
        """Return the job as a job file, every default written out."""
        return to_yaml(self.model_dump(mode="json"))


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file and apply `a.b=c` overrides.

    Raises ConfigError with file, line and setting for everything that is wrong, all of it at once.
    """
    file = read_job_file(path)
    apply_overrides(file, overrides)
    return check_job(file)


def check_job(file: JobFile) -> Job:
    """Validate a job file's values; see `load_job`."""
    _check_kind(file)
    values = _without_settings_of_other_tasks(file)
    try:
        return Job.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(problems(file, error, Job))) from None


def _check_kind(file: JobFile) -> None:
    """Raise ConfigError for a task that is none; without its kind nothing can be said of its other settings."""
    task = file.values.get("task")
    if not isinstance(task, dict):
        return
    kind, where = task.get("kind"), file.place(("task", "kind"))
    if kind not in KINDS:
        near = get_close_matches(str(kind), KINDS, n=1)
        found = f"got {shorten(repr(kind))}" if "kind" in task else "it is missing"
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{where}: task.kind: must be {listed(KINDS, 'or')}, {found}{hint}")
    method, methods = task.get("method"), METHODS.get(str(kind), ())
    if "method" in task and methods and method not in methods:
        where = file.place(("task", "method"))
        raise ConfigError(f"{where}: task.method: must be {listed(methods, 'or')}, got {shorten(repr(method))}")


def _without_settings_of_other_tasks(file: JobFile) -> dict[str, Any]:
    """Return the values without those settings. Raises ConfigError where one of them asks for something."""
    values = copy.deepcopy(file.values)
    found = []
    for setting, (neutral, reason) in OF_OTHER_TASKS.items():
        block, name = setting.split(".")
        settings = values.get(block)
        if not isinstance(settings, dict) or name not in settings or name in known_settings(Job, (block,), values):
            continue
        value = settings.pop(name)
        if value not in neutral:
            found.append(f"{file.place((block, name))}: {setting}: {reason}; leave it out")
    if found:
        raise ConfigError("\n".join(found))
    return values
