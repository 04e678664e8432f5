"""The third stage: a replica of the model. Token ids in, packed results out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from gptj_batch.backends.base import Backend
from gptj_batch.backends.factory import make_backend
from gptj_batch.model_folder import Head, resolve_folder
from gptj_batch.requests import AnyRequest, Pooling
from gptj_batch.results import AnyResult, Failed, Generated
from gptj_batch.stages.columns import (
    BACKEND_FACTS,
    ERROR,
    KEY,
    NOTES,
    NUM_GENERATED_TOKENS,
    NUM_PROMPT_TOKENS,
    PROMPT_TOKEN_IDS,
    RAW,
    strings,
    with_column,
)
from gptj_batch.stages.tokenize import load_tokenizer
from gptj_batch.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What a replica needs besides its task."""

    kind: str
    model_path: str
    revision: str | None
    dtype: str
    device: str
    num_threads: int
    max_step_tokens: int | None = None
    max_running: int | None = None
    kv_cache_gb: float | None = None
    prefix_caching: bool = True
    pooling: Pooling | None = None
    tensor_parallel: int = 1
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)


class InferStage:
    """Hold one replica of the model and run tables through it; several calls at once share its engine."""

    def __init__(self, task: Task, replica: ReplicaSettings) -> None:
        self._task = task
        self._requests = task.request_maker(load_tokenizer(replica.model_path, replica.revision))
        self._backend = _start(replica, task.head)
        self._facts = json.dumps(self._backend.describe()).encode()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace the token ids by each row's packed results; rows that have an error are left alone."""
        rows, requests = self._rows_and_requests(table)
        results = iter(self._backend.run(requests))
        per_row = {row: [next(results) for _ in range(count)] for row, count in rows}
        errors = strings(table, ERROR)
        packed = [self._pack(per_row.get(row)) for row in range(table.num_rows)]
        table = table.drop_columns([PROMPT_TOKEN_IDS, ERROR])
        table = with_column(table, RAW, pa.array([raw for raw, _ in packed], type=self._task.raw_type))
        for name, count in ((NUM_PROMPT_TOKENS, _num_prompt), (NUM_GENERATED_TOKENS, _num_generated)):
            counts = [count(per_row.get(row, [])) for row in range(table.num_rows)]
            table = with_column(table, name, pa.array(counts, type=pa.int32()))
        merged = [old if old is not None else new for old, (_, new) in zip(errors, packed, strict=True)]
        table = with_column(table, ERROR, pa.array(merged, type=pa.string()))
        return table.replace_schema_metadata({**(table.schema.metadata or {}), BACKEND_FACTS: self._facts})

    def _rows_and_requests(self, table: pa.Table) -> tuple[list[tuple[int, int]], list[AnyRequest]]:
        """Return which rows have requests, and how many; and all requests in the order of the rows."""
        rows: list[tuple[int, int]] = []
        requests: list[AnyRequest] = []
        keys = strings(table, KEY)
        notes = table.column(NOTES).to_pylist()
        for row, token_ids in enumerate(table.column(PROMPT_TOKEN_IDS).to_pylist()):
            if token_ids is not None:
                of_row = self._requests.requests(str(keys[row]), token_ids, notes[row])
                rows.append((row, len(of_row)))
                requests.extend(of_row)
        return rows, requests

    def _pack(self, results: list[AnyResult] | None) -> tuple[object, str | None]:
        """Return a row's packed results, or None and why it failed."""
        if results is None:
            return None, None
        failed = next((result for result in results if isinstance(result, Failed)), None)
        return (None, failed.error) if failed is not None else (self._task.pack(results), None)


def _start(replica: ReplicaSettings, head: Head) -> Backend:
    if replica.kind != "fake":
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
