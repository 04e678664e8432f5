"""A job's whole configuration: what is read, done, with which model, how, and where the result goes."""

import copy
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from gptj_batch.errors import ConfigError, shorten
from gptj_batch.tasks.base import Settings
from gptj_batch.tasks.registry import TaskSettings
from pipelines.job_file import JobFile, Location, apply_overrides, read_job_file

# Settings that the contract has and this version does not: better said than called unknown.
# Each with the values that ask for nothing, which are let through, and what to say of any other.
LATER: dict[str, tuple[tuple[Any, ...], str]] = {
    "task.num_beams": ((None, 1), "beam search is not in this version"),
    "task.length_penalty": ((None, 1.0), "beam search is not in this version"),
    "task.early_stopping": ((None, False), "beam search is not in this version"),
    "task.choices": ((None,), "constrained decoding is not in this version; `classify` scores a list of choices"),
    "task.regex": ((None,), "constrained decoding is not in this version"),
    "task.json_schema": ((None,), "constrained decoding is not in this version"),
    "task.calibrate": ((None, "none"), "calibration is not in this version"),
    "task.text": ((None,), "it belongs to `classify` with method head, which is not in this version"),
    "task.top_k": ((None, 0), "it belongs to `classify` with method head, which is not in this version"),
    "task.multi_label_threshold": ((None,), "it belongs to `classify` with method head, which is not in this version"),
    "output.partition_by": ((None, []), "partitioned output is not in this version"),
    # on and off give the same results: the native engine computes every prompt by itself in this version
    "backend.prefix_caching": ((None, True, False), ""),
}
LATER_KINDS = ("extract", "score", "embed")


class InputSettings(Settings):
    """What is read."""

    path: str | tuple[str, ...]
    """A file, a folder, a glob, or a list of them; local, s3:// or gs://."""
    format: Literal["auto", "parquet", "arrow", "jsonl", "csv", "huggingface"] = "auto"
    """`auto` goes by the ending."""
    columns: tuple[str, ...] | None = None
    """Read and keep only these; null keeps all."""
    key: str | None = None
    """The column that names a row in messages, and that sampling draws from; null is file and row number."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many rows."""

    @field_validator("path", "columns", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("path")
    @classmethod
    def _not_empty(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or "" in ((value,) if isinstance(value, str) else value):
            raise ValueError("must name at least one file, folder or glob")
        return value


class ModelSettings(Settings):
    """The model."""

    path: str = Field(default="EleutherAI/gpt-j-6B", min_length=1)
    """A folder in Hugging Face layout, a hub name, or `demo`."""
    revision: str | None = None
    """The revision of a hub name."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """`auto`: float16 on CUDA, bfloat16 on a CPU that computes in it, else float32."""


class BackendSettings(Settings):
    """The engine."""

    kind: Literal["auto", "native", "vllm", "fake"] = "auto"
    """`fake` answers at once without a model, for dry runs."""
    max_step_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one forward pass; null is chosen for the device."""
    max_running: int | None = Field(default=None, ge=1)
    """Sequences decoded at once; null is chosen for the device."""
    kv_cache_gb: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Memory of the KV cache in GiB; null is chosen for the device."""


class ReplicaSettings(Settings):
    """How many copies of the model, and what each may use."""

    min: int = Field(default=1, ge=1)
    """Start with at least so many."""
    max: int | None = Field(default=None, ge=1)
    """Never more; null is what the cluster's GPUs or, without any, its CPUs allow."""
    gpus_each: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """GPUs of a replica; null is 1 where the cluster has GPUs, else 0."""
    cpus_each: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """CPUs of a replica; null is chosen."""


class OutputSettings(Settings):
    """Where the result goes."""

    path: str = Field(min_length=1)
    """A folder."""
    format: Literal["parquet", "arrow", "jsonl"] = "parquet"
    on_exists: Literal["resume", "overwrite", "fail"] = "resume"
    """`resume` does what is missing, if the same configuration made what is there."""
    prefix: str = ""
    """Put before the name of every added column."""
    compression: Literal["zstd", "snappy", "gzip", "brotli", "lz4", "none"] = "zstd"
    target_file_mb: int = Field(default=128, ge=1)
    """Parts are merged to about this size when the run completes."""

    @field_validator("format")
    @classmethod
    def _only_parquet(cls, value: str) -> str:
        if value != "parquet":
            raise ValueError(f"{value} output is not in this version; parquet is")
        return value


class ErrorSettings(Settings):
    """What a run may survive."""

    max_failed_rows: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    """More failed rows than this end the run with exit code 3: a share below 1.0, or a count from 1 up."""
    bad_files: Literal["fail", "skip"] = "fail"
    """An input file that cannot be read: stop before anything runs, or leave it out and exit with 3."""

    @field_validator("max_failed_rows")
    @classmethod
    def _share_or_count(cls, value: float) -> float:
        if value >= 1.0 and value != int(value):
            raise ValueError("must be a share below 1.0 or a whole number of rows from 1 up")
        return value

    def allows(self, failed: int, rows: int) -> bool:
        """Tell whether so many failed rows of so many are within the limit."""
        limit = self.max_failed_rows
        return failed <= (limit * rows if limit < 1.0 else limit)


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

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", value):
            raise ValueError("must be 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        replicas = self.replicas
        if replicas.max is not None and replicas.min > replicas.max:
            raise ValueError(f"replicas.min ({replicas.min}) is above replicas.max ({replicas.max})")
        return self

    def to_yaml(self) -> str:
        """Return the job as a job file, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file and apply `a.b=c` overrides.

    Raises ConfigError with file, line and setting for everything that is wrong, all of it at once.
    """
    file = read_job_file(path)
    apply_overrides(file, overrides)
    return check_job(file)


def check_job(file: JobFile) -> Job:
    """Validate a job file's values; see `load_job`."""
    _refuse_later_kinds(file)
    values = _without_later_settings(file)
    try:
        return Job.model_validate(values)
    except ValidationError as error:
        problems = [_problem(file, details) for details in error.errors(include_url=False, include_context=True)]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None


def _refuse_later_kinds(file: JobFile) -> None:
    task = file.values.get("task")
    if not isinstance(task, dict):
        return
    if task.get("kind") in LATER_KINDS:
        where = file.place(("task", "kind"))
        raise ConfigError(f"{where}: task.kind: {task['kind']} is not in this version; generate and classify are")
    if task.get("kind") == "classify" and task.get("method") == "head":
        where = file.place(("task", "method"))
        raise ConfigError(f"{where}: task.method: head is not in this version; use prompt, which needs no trained head")


def _without_later_settings(file: JobFile) -> dict[str, Any]:
    """Return the values without the settings of LATER. Raises ConfigError where one of them asks for something."""
    values = copy.deepcopy(file.values)
    problems = []
    for setting, (neutral, reason) in LATER.items():
        block, name = setting.split(".")
        settings = values.get(block)
        if not isinstance(settings, dict) or name not in settings or _is_known(values, block, name):
            continue
        value = settings.pop(name)
        if value not in neutral:
            problems.append(f"{file.place((block, name))}: {setting}: {reason}; leave it out")
    if problems:
        raise ConfigError("\n".join(problems))
    return values


def _is_known(values: dict[str, Any], block: str, name: str) -> bool:
    return name in _known_settings((block,), values)


def _problem(file: JobFile, details: Any) -> str:
    """Return one line: where, which setting, the rule, what was found, what to do."""
    location = _without_union_tags(tuple(details["loc"]))
    setting = ".".join(map(str, location)) or "the job"
    where = file.place(location)
    kind, message = details["type"], details["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"{where}: {setting}: no such setting{_nearest(location, file.values)}"
    if kind == "missing":
        return f"{where}: {setting}: is missing; it must be set"
    found = "" if isinstance(details["input"], dict | list) else f", got {shorten(repr(details['input']))}"
    return f"{where}: {setting}: {message[:1].lower()}{message[1:]}{found if kind != 'value_error' else ''}"


_TAGS = ("generate", "classify")


def _without_union_tags(location: Location) -> Location:
    """Drop what pydantic adds for the kind of task and for alternatives of a type."""
    return tuple(
        part
        for index, part in enumerate(location)
        if not (index == 1 and location[0] == "task" and part in _TAGS)
        and not (isinstance(part, str) and re.search(r"[\[(]|^(str|tuple|dict|int|float)$", part))
    )


def _nearest(location: Location, values: Any) -> str:
    """Return a hint with the nearest setting that there is beside an unknown one, or in another block."""
    known = _known_settings(location[:-1], values)
    name = str(location[-1])
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {'.'.join(map(str, (*location[:-1], near[0])))}?"
    elsewhere = [f"{block}.{name}" for block in Job.model_fields if name in _known_settings((block,), values)]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; there are {', '.join(known)}" if known else ""


def _known_settings(location: Location, values: Any) -> list[str]:
    model: Any = Job
    for part in location:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            return []
        model = model.model_fields[str(part)].annotation
        if get_origin(model) is not None or not isinstance(model, type):
            kind = values.get("task", {}).get("kind") if isinstance(values.get("task"), dict) else None
            options = [
                option for option in get_args(model) if isinstance(option, type) and issubclass(option, Settings)
            ]
            model = next((o for o in options if kind in get_args(o.model_fields["kind"].annotation)), None)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
