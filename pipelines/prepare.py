"""Preparing a run: everything that can be wrong is found before anything starts, and before any weight is read."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import gptj_batch
from gptj_batch.errors import CheckpointError, ConfigError
from gptj_batch.model_folder import CLASS_NAMES, DEMO, ModelFacts, read_facts
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.records.beside import beside
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.partitions import check_partitions
from gptj_batch.records.read import InputFiles, UnitPlan, list_files, plan_units
from gptj_batch.records.schema import check_storable, name_list, output_schema, select_columns
from gptj_batch.stages.columns import PREFIX as INTERNAL
from gptj_batch.tasks.base import ERROR_COLUMN, Task
from gptj_batch.tasks.registry import make_task
from pipelines.apart import check_apart, check_found_apart, input_paths
from pipelines.backend_choice import check_backend
from pipelines.config import Job
from pipelines.lineage import prompt_hash, versions

# Units small enough that a short job keeps several in flight, and no more than the planner handles in a second.
MIN_UNIT_ROWS, MAX_UNIT_ROWS = 32, 512
UNITS_OF_A_SHORT_JOB, MAX_UNITS = 64, 100_000


@dataclass(frozen=True, kw_only=True)
class Run:
    """A job that has been checked: what will be done, in which units.

    is_beside: written beside an output that it is to replace    by_file: every part has rows of one input file only
    told_in: the output whose `run.json` says how the run ends, too, where that is not the run's own folder
    """

    job: Job
    task: Task
    inputs: InputFiles
    plan: UnitPlan
    model: ModelFacts
    is_beside: bool = False
    by_file: bool = False
    told_in: str | None = None

    @property
    def part_groups(self) -> list[int] | None:
        """Return how many units each file has, where no part may hold rows of two files."""
        return self.plan.units_of_files if self.by_file else None

    @property
    def folder(self) -> str:
        """Return where the run writes: the output's folder, or one beside it until the two change places."""
        return str(beside(self.job.output.path)) if self.is_beside else self.job.output.path

    @property
    def failure_folders(self) -> list[str]:
        """Return the folders whose `run.json` is to say why the run did not finish."""
        own, is_at_work = OutputFolder.at(self.folder), False
        with suppress(OSError):  # of a bucket that does not answer any more
            # Once the parts are published there, or in place, the report is beside them, and stays.
            is_at_work = own.store.is_folder(own.root) and not own.store.exists(own.success)
        at_work = [self.folder] if is_at_work else []
        return at_work if self.told_in is None else [self.told_in, *at_work]

    @property
    def model_path(self) -> str:
        """Return the model as every worker finds it: `demo` and hub names as they are, folders absolute."""
        path = self.job.model.path
        return path if path == DEMO or not Path(path).expanduser().is_dir() else str(self.model.folder.resolve())

    @property
    def columns(self) -> list[str] | None:
        """Return the columns that are read, None for all."""
        return None if self.job.input.columns is None else list(self.job.input.columns)

    @property
    def error_column(self) -> str:
        """Return the name of the column of errors in the output."""
        return self.job.output.prefix + ERROR_COLUMN

    def lineage(self) -> dict[str, Any]:
        """Return what every output file says of its making."""
        return {
            "versions": versions(),
            "job": self.job.name,
            "model": self.job.model.path,
            "revision": self.job.model.revision,
            "model_identity": self.model.identity,
            "prompt_sha256": prompt_hash(self.job.task),
            "task": self.job.task.model_dump(mode="json"),
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the rows; a rerun may only go on where all of it is the same.

        The form of the parts is not in it: until they are published another may be chosen, and nothing is done again.
        """
        files = {
            file.path: f"{file.num_rows} rows, {file.size_bytes} bytes, {file.version or file.mtime_ns}"
            for file in self.inputs.files
        }
        facts = result_settings(self.job, self.model)
        facts["input"] |= {"files": files, "limit": self.job.input.limit}
        return {**facts, "rows_per_unit": self.plan.max_rows_per_unit}


def result_settings(job: Job, model: ModelFacts) -> dict[str, Any]:
    """Return everything that decides what becomes of a row, whichever files there are."""
    kwargs = {"engine_kwargs": job.backend.engine_kwargs} if job.backend.engine_kwargs else {}
    return {
        "gptj_batch": gptj_batch.__version__,
        "input": {"columns": None if job.input.columns is None else list(job.input.columns), "key": job.input.key},
        "task": job.task.model_dump(mode="json"),
        "model": {"identity": model.identity, "dtype": job.model.dtype},
        "backend": {"kind": job.backend.kind, **kwargs},
        "output": {"prefix": job.output.prefix},
    }


def prepare(job: Job) -> Run:
    """Check a job against its input and its model.

    Raises ConfigError, InputError or CheckpointError; nothing has been started or written then.
    """
    check_backend(job)
    check_apart(job)
    inputs = find_inputs(job)
    check_found_apart(job, [*(file.path for file in inputs.files), *(file.path for file in inputs.skipped)])
    return prepare_on(job, inputs)


def find_inputs(job: Job) -> InputFiles:
    """Return the files that a job reads. Raises ConfigError or InputError."""
    source = job.input
    return list_files(input_paths(job), source.format, job.errors.bad_files, subset=source.subset, split=source.split)


def prepare_on(job: Job, inputs: InputFiles, are_columns_known: bool = True) -> Run:
    """Check a job against these inputs and its model; see `prepare`.

    are_columns_known: false for a dataset that will only say when it is executed what columns it has
    """
    check_backend(job)
    model = read_facts(job.model.path, job.model.revision, job.task.head)
    task = make_task(job.task, model)
    if are_columns_known:
        _check_columns(job, task, inputs.schema)
    _check_model(job, task, model)
    rows_per_unit = unit_rows(min(inputs.num_rows, job.input.limit or inputs.num_rows))
    return Run(job=job, task=task, inputs=inputs, plan=plan_units(inputs, rows_per_unit, job.input.limit), model=model)


def unit_rows(num_rows: int) -> int:
    """Return how many rows a unit has, a function of the run's rows alone so that a rerun cuts alike."""
    short = -(-num_rows // UNITS_OF_A_SHORT_JOB)
    return max(MIN_UNIT_ROWS, min(MAX_UNIT_ROWS, short), -(-num_rows // MAX_UNITS))


def _check_columns(job: Job, task: Task, schema: pa.Schema) -> None:
    columns = None if job.input.columns is None else list(job.input.columns)
    schema = select_columns(schema, columns)
    check_names(job, task, schema.names)
    result = output_schema(schema, _added(task), job.output.prefix)
    check_storable(result)
    check_partitions(result, job.output.partition_by)
    if job.output.format == "jsonl" and len(set(result.names)) < len(result.names):
        raise ConfigError("output.format: two columns have one name, which JSON objects cannot have; use parquet")


def check_names(job: Job, task: Task, names: Sequence[str]) -> None:
    """Raise ConfigError where a column that the job reads is not among `names`, or one that it adds is."""
    task.check_columns(names)
    if internal := [name for name in names if name.startswith(INTERNAL)]:
        raise ConfigError(
            f"input.columns: {name_list(internal)}: columns between the stages begin with {INTERNAL}; leave them out "
            "with input.columns, or rename them"
        )
    if job.input.key is not None and job.input.key not in names:
        raise ConfigError(f'input.key: the input has no column "{job.input.key}"; it has {", ".join(names)}')
    output_schema(pa.schema([pa.field(name, pa.null()) for name in names]), _added(task), job.output.prefix)


def _added(task: Task) -> pa.Schema:
    return task.adds.append(pa.field(ERROR_COLUMN, pa.string()))


def _check_model(job: Job, task: Task, model: ModelFacts) -> None:
    wanted = list(CLASS_NAMES.values()) if task.head == "none" else [CLASS_NAMES[task.head]]
    if model.architectures and not {*wanted} & {*model.architectures} and job.backend.kind != "fake":
        method = getattr(job.task, "method", None)
        by_method = f" with method {method}" if method is not None else ""
        raise CheckpointError(
            f"model.path: {job.model.path} holds a {', '.join(model.architectures)}; task.kind {job.task.kind}"
            f"{by_method} needs a {' or a '.join(wanted)}"
        )
    tokenizer = Tokenizer.from_folder(model.folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(
            f"model.path: the tokenizer in {model.folder} has {tokenizer.vocab_size} tokens and the model only "
            f"{model.vocab_size} (vocab_size in config.json)"
        )
    task.encoder(tokenizer, model.n_positions)
    task.request_maker(tokenizer)
