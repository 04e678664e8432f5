"""The third stage: a replica of the model. Token ids in, packed results out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from gptj_batch.backends.base import Backend
from gptj_batch.backends.factory import make_backend
from gptj_batch.importing import uncollected
from gptj_batch.model_folder import Head, resolve_folder
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import AnyRequest, Pooling
from gptj_batch.results import AnyResult, Failed, Generated
from gptj_batch.stages.careful import CarefulRunner, RowCare
from gptj_batch.stages.columns import (
    BACKEND_FACTS,
    ERROR,
    IS_DUPLICATE,
    KEY,
    NOTES,
    NUM_GENERATED_TOKENS,
    NUM_PROMPT_TOKENS,
    PROMPT_TOKEN_IDS,
    RAW,
    UNIT,
    strings,
    with_column,
)
from gptj_batch.stages.duplicates import Answer, Duplicates
from gptj_batch.stages.tokenize import load_tokenizer
from gptj_batch.tasks.base import Calibrated, Deduplicated, Task


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What a replica needs besides its task."""

    kind: str
    model_path: str
    revision: str | None
    dtype: str
    device: str | None
    num_threads: int
    max_step_tokens: int | None = None
    max_running: int | None = None
    kv_cache_gb: float | None = None
    prefix_caching: bool = True
    pooling: Pooling | None = None
    holds_texts: bool = False
    tensor_parallel: int = 1
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)


class InferStage:
    """Hold one replica of the model and run tables through it; several calls at once share its engine.

    care: how rows that end or stop the replica are dealt with; without it, they end or stop the run
    backend: one that runs already, for a replica that serves several tasks; None starts one
    """

    def __init__(
        self, task: Task, replica: ReplicaSettings, care: RowCare | None = None, backend: Backend | None = None
    ) -> None:
        tokenizer = load_tokenizer(replica.model_path, replica.revision)
        self._requests = task.request_maker(tokenizer)
        self._backend = backend or start_backend(replica, task.head)
        self._task = calibrated(task, tokenizer, self._backend)
        self._duplicates = Duplicates() if isinstance(task, Deduplicated) and task.deduplicate else None
        self._careful = None if care is None else CarefulRunner(self._backend, care, run=self._run)
        self._facts = json.dumps(self._backend.describe()).encode()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace the token ids by each row's packed results; rows that have an error are left alone."""
        requests = self._requests_of_rows(table)
        of_rows = dict(zip(requests, self._answers(table, list(requests.values())), strict=True))
        per_row = {row: [one.result for one in of_row] for row, of_row in of_rows.items()}
        copied = [
            bool(of_rows.get(row)) and all(one.is_shared for one in of_rows[row]) for row in range(table.num_rows)
        ]
        errors = strings(table, ERROR)
        packed = [self._pack(per_row.get(row)) for row in range(table.num_rows)]
        table = table.drop_columns([PROMPT_TOKEN_IDS, ERROR])
        table = with_column(table, RAW, pa.array([raw for raw, _ in packed], type=self._task.raw_type))
        for name, count in ((NUM_PROMPT_TOKENS, _num_prompt), (NUM_GENERATED_TOKENS, _num_generated)):
            counts = [0 if copied[row] else count(per_row.get(row, [])) for row in range(table.num_rows)]
            table = with_column(table, name, pa.array(counts, type=pa.int32()))
        table = with_column(table, IS_DUPLICATE, pa.array(copied, type=pa.bool_()))
        merged = [old if old is not None else new for old, (_, new) in zip(errors, packed, strict=True)]
        table = with_column(table, ERROR, pa.array(merged, type=pa.string()))
        return table.replace_schema_metadata({**(table.schema.metadata or {}), BACKEND_FACTS: self._facts})

    def _run(self, requests: Sequence[AnyRequest]) -> list[Answer]:
        if self._duplicates is not None:
            return self._duplicates.run(requests, self._backend.run)
        return [Answer(result, False) for result in self._backend.run(requests)]

    def _requests_of_rows(self, table: pa.Table) -> dict[int, list[AnyRequest]]:
        """Return the requests of every row that has any."""
        keys = strings(table, KEY)
        notes = table.column(NOTES).to_pylist()
        return {
            row: self._requests.requests(str(keys[row]), token_ids, notes[row])
            for row, token_ids in enumerate(table.column(PROMPT_TOKEN_IDS).to_pylist())
            if token_ids is not None
        }

    def _answers(self, table: pa.Table, rows: list[list[AnyRequest]]) -> list[list[Answer]]:
        """Return the answers to each row's requests; a row that was left out has a single `Failed`."""
        if self._careful is not None and rows:
            answered = self._careful.run(table.column(UNIT)[0].as_py(), rows)
            return [[one if isinstance(one, Answer) else Answer(one, False) for one in row] for row in answered]
        answers = iter(self._run([request for row in rows for request in row]))
        return [[next(answers) for _ in row] for row in rows]

    def _pack(self, results: list[AnyResult] | None) -> tuple[object, str | None]:
        """Return a row's packed results, or None and why it failed."""
        if results is None:
            return None, None
        failed = next((result for result in results if isinstance(result, Failed)), None)
        return (None, failed.error) if failed is not None else (self._task.pack(results), None)


def calibrated(task: Task, tokenizer: Tokenizer, backend: Backend) -> Task:
    """Return the task, having asked the model once, by itself, what it wants to know before the first row.

    Raises BackendError where the model could not say.
    """
    requests = task.baseline_requests(tokenizer) if isinstance(task, Calibrated) else []
    if not (isinstance(task, Calibrated) and requests):
        return task
    return task.with_baseline(backend.run(requests), tokenizer)


def start_backend(replica: ReplicaSettings, head: Head) -> Backend:
    """Load the model with a head. Raises ConfigError or CheckpointError."""
    if replica.kind != "fake":
        with uncollected():
            import torch

        # Ray sets OMP_NUM_THREADS to the claimed CPUs, which on a machine without GPUs is not what a replica may use.
        torch.set_num_threads(replica.num_threads)
    return make_backend(
        replica.kind,
        model_path=resolve_folder(replica.model_path, replica.revision, head),
        head=head,
        revision=replica.revision,
        dtype=replica.dtype,
        device=replica.device,
        max_step_tokens=replica.max_step_tokens,
        max_running=replica.max_running,
        kv_cache_gb=replica.kv_cache_gb,
        prefix_caching=replica.prefix_caching,
        pooling=replica.pooling,
        holds_texts=replica.holds_texts,
        tensor_parallel=replica.tensor_parallel,
        num_threads=replica.num_threads,
        engine_kwargs=replica.engine_kwargs,
    )


def _num_prompt(results: list[AnyResult]) -> int:
    """Return the tokens of a row's prompts; the samples of a row have one and the same."""
    done = [result for result in results if not isinstance(result, Failed)]
    has_samples = any(isinstance(result, Generated) for result in done)
    return sum(result.num_prompt_tokens for result in (done[:1] if has_samples else done))


def _num_generated(results: list[AnyResult]) -> int:
    return sum(len(result.token_ids) for result in results if isinstance(result, Generated))
