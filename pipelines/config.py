"""A job's whole configuration: what is read, done, with which model, how, and where the result goes."""

import copy
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from gptj_batch.errors import ConfigError, shorten
from gptj_batch.records.part_form import COMPRESSIONS, PartForm
from gptj_batch.stages.columns import PREFIX as INTERNAL
from gptj_batch.tasks.base import Settings
from gptj_batch.tasks.registry import TaskSettings
from pipelines.job_file import JobFile, apply_overrides, read_job_file, to_yaml
from pipelines.problems import known_settings, problems

# Settings that the contract has and this version or this task does not: better said than called unknown.
# Each with the values that ask for nothing, which are let through, and what to say of any other.
LATER: dict[str, tuple[tuple[Any, ...], str]] = {
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


class InputSettings(Settings):
    """What is read."""

    path: str | tuple[str, ...]
    """A file, a folder, a glob, or a list of them; local, s3://, gs:// or hf://; or a dataset's name."""
    format: Literal["auto", "parquet", "arrow", "jsonl", "csv", "huggingface"] = "auto"
    """`auto` goes by the ending; `huggingface` is a dataset's name, or a folder of one."""
    subset: str | None = None
    """Of a dataset that has several, which (`name` of `datasets.load_dataset`)."""
    split: str | None = None
    """Of a dataset that has several, which: `train`, for example."""
    columns: tuple[str, ...] | None = None
    """Read and keep only these; null keeps all."""
    key: str | None = None
    """The column that names a row in messages, and that sampling draws from; null is file and row number."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many rows."""
    incremental: bool = False
    """Do only the files that earlier runs have not done, or that changed since; what was done, the ledger says."""

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
    dtype: Literal["auto", "float16", "bfloat16", "float32", "int8"] = "auto"
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
    prefix_caching: bool = True
    """Whether what prompts begin with in common is computed once and shared."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Split one model over so many GPUs of a node; vLLM only."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of vLLM's engine by vLLM's own names, such as gpu_memory_utilization; vLLM only."""


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

    @field_validator("gpus_each")
    @classmethod
    def _share_or_whole(cls, value: float | None) -> float | None:
        if value is not None and value > 1.0 and value != int(value):
            raise ValueError("must be a share of one GPU or a whole number of them")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max is not None and self.min > self.max:
            raise ValueError(f"replicas.min ({self.min}) is above replicas.max ({self.max})")
        return self


class OutputSettings(Settings):
    """Where the result goes."""

    path: str = Field(min_length=1)
    """A folder."""
    format: Literal["parquet", "arrow", "jsonl"] = "parquet"
    """Arrow is IPC files; jsonl is one JSON object a line, whose types `records/json_rows.py` lists."""
    on_exists: Literal["resume", "overwrite", "fail"] = "resume"
    """`resume` does what is missing, if the same configuration made what is there."""
    incremental: Literal["partition", "append"] = "partition"
    """Of incremental runs: each one's parts in a folder `run=<time>` of their own, or all in one folder."""
    prefix: str = ""
    """Put before the name of every added column."""

    @field_validator("prefix")
    @classmethod
    def _not_internal(cls, value: str) -> str:
        if value.startswith(INTERNAL):
            raise ValueError(f"{INTERNAL} is what columns between the stages begin with; choose another")
        return value

    partition_by: tuple[str, ...] = ()
    """Columns, of the input or added, whose values make the folders `column=value` that parts lie in."""
    compression: Literal["zstd", "snappy", "gzip", "brotli", "lz4", "none"] = "zstd"
    """Where it is not set: zstd for parquet and arrow, none for jsonl."""
    target_file_mb: int = Field(default=128, ge=1)
    """Parts are merged to about this size when the run completes."""
    row_group_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows in a Parquet row group or an Arrow record batch; null cuts them at 32 MiB in memory."""

    @model_validator(mode="before")
    @classmethod
    def _compression_of_the_format(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("compression", None) is not None:
            return values
        usual = COMPRESSIONS.get(values.get("format", "parquet"), ("zstd",))[0]
        return {**values, "compression": usual}

    @field_validator("compression")
    @classmethod
    def _fits_the_format(cls, value: str, info: ValidationInfo) -> str:
        known = COMPRESSIONS.get(info.data.get("format", "parquet"), ())
        if value not in known:
            raise ValueError(f"{info.data['format']} is compressed with {_listed(known, 'or')}, got {value}")
        return value

    @field_validator("partition_by", mode="before")
    @classmethod
    def _columns(cls, value: Any) -> Any:
        return () if value is None else tuple(value) if isinstance(value, list) else value

    @field_validator("partition_by")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value or len(set(value)) < len(value):
            raise ValueError("must name columns, each once")
        return value

    @property
    def form(self) -> PartForm:
        """Return what the finished parts are like."""
        return PartForm(
            target_file_bytes=self.target_file_mb * 2**20,
            format=self.format,
            compression=self.compression,
            partition_by=self.partition_by,
            row_group_rows=self.row_group_rows,
        )


class ErrorSettings(Settings):
    """What a run may survive."""

    max_failed_rows: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    """More failed rows than this end the run with exit code 3: a share below 1.0, or a count from 1 up."""
    bad_files: Literal["fail", "skip"] = "fail"
    """An input file that cannot be read: stop before anything runs, or leave it out and exit with 3."""
    row_timeout_s: float | None = Field(default=3600.0, gt=0.0, allow_inf_nan=False)
    """A replica that gets nothing done for so long is started anew, and a row that alone takes longer gets an error."""
    max_deadly_rows: int = Field(default=100, ge=0)
    """More rows than this that end the process that runs them end the run: then the machine is to be looked at."""

    stop_after: int | None = Field(default=1000, ge=1)
    """Once so many rows are done, a run nearly all of whose rows failed is stopped with exit code 3; null: never."""
    stop_share: float = Field(default=0.9, ge=0.0, le=1.0)
    """Such a run is stopped where more than this share of its rows failed, and more than `max_failed_rows` allows."""

    @field_validator("max_failed_rows")
    @classmethod
    def _share_or_count(cls, value: float) -> float:
        if value >= 1.0 and value != int(value):
            raise ValueError("must be a share below 1.0 or a whole number of rows from 1 up")
        return value

    def allows(self, failed: int, rows: int) -> bool:
        """Tell whether so many failed rows of so many are within the limit."""
        limit = self.max_failed_rows
        # A quotient and not a product: 0.29 * 100 is below 29.
        return failed == 0 or (failed / rows if limit < 1.0 else failed) <= limit


class DriftSettings(Settings):
    """How much an incremental run's rows may differ from those of the run before it."""

    max_psi: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """A population stability index above this ends the run with exit code 3; null only reports it. 0.2 is common."""
    min_rows: int = Field(default=200, ge=1)
    """Runs of fewer rows are neither compared nor compared with: chance alone makes them differ."""


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
    values = _without_later_settings(file)
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
        raise ConfigError(f"{where}: task.kind: must be {_listed(KINDS, 'or')}, {found}{hint}")
    method, methods = task.get("method"), METHODS.get(str(kind), ())
    if "method" in task and methods and method not in methods:
        where = file.place(("task", "method"))
        raise ConfigError(f"{where}: task.method: must be {_listed(methods, 'or')}, got {shorten(repr(method))}")


def _listed(names: Sequence[str], word: str) -> str:
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _without_later_settings(file: JobFile) -> dict[str, Any]:
    """Return the values without the settings of LATER. Raises ConfigError where one of them asks for something."""
    values = copy.deepcopy(file.values)
    found = []
    for setting, (neutral, reason) in LATER.items():
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
