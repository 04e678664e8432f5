"""The blocks of a job file, setting by setting; the task's own settings stand with the tasks."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gptj_batch.records.part_form import COMPRESSIONS, PartForm
from gptj_batch.stages.columns import PREFIX as INTERNAL
from gptj_batch.tasks.base import Settings


def listed(names: Sequence[str], word: str) -> str:
    """Return names as a sentence has them: `a, b or c`."""
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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

    @field_validator("prefix", mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: Any) -> Any:
        return "" if value is None else value  # what `output.prefix=` on a command line is

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
            raise ValueError(f"{info.data['format']} is compressed with {listed(known, 'or')}, got {value}")
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
