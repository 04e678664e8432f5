"""The notebook's spine: tokenize -> infer -> decode over a stream of tables, in the caller's process or a task of Ray.

The stages are those of `pipelines.build`; what differs is that the replicas were there before and stay.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator

import pyarrow as pa

from gptj_batch.stages.columns import BACKEND_FACTS, KEY, PREFIX, PROMPT_TOKEN_IDS, with_column, without_internal
from gptj_batch.stages.decode import DecodeStage
from gptj_batch.stages.read import own_keys
from gptj_batch.stages.tokenize import TokenizeStage
from pipelines.prepare import Run, check_names
from pipelines.warm_pool import WarmReplicas

# Rows of one request to a replica, where nothing else says how many.
PIECE_ROWS = 256


class Enrich:
    """Add a task's columns to tables, on replicas that are kept warm."""

    def __init__(self, run: Run, replicas: WarmReplicas) -> None:
        model = (run.model_path, run.job.model.revision)
        self._job = run.job
        self._task = run.task
        self._name = _name(run)
        self._replicas = replicas
        self._tokenize = TokenizeStage(run.task, *model, run.model.n_positions)
        self._decode = DecodeStage(run.task, *model, run.job.output.prefix)

    def tables(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield every table with its columns, and with those of `stages.columns`, in order. Raises GPTJBatchError.

        While one is waited for, those behind it are tokenized and in the replicas.
        """
        records: deque[pa.Table] = deque()
        for results in self._replicas.infer(self._name, self._task, self._prompts(tables, records)):
            yield self._decode(_beside(records.popleft(), results))

    def _prompts(self, tables: Iterable[pa.Table], records: deque[pa.Table]) -> Iterator[pa.Table]:
        """Yield what a replica must see of each table; the caller's own columns stay here, in `records`."""
        for table in tables:
            prompts = self._with_keys(self._tokenize(table))
            internal = [name for name in prompts.column_names if name.startswith(PREFIX)]
            records.append(without_internal(table))
            yield prompts.select(internal)

    def unit(self, table: pa.Table) -> pa.Table:
        """Return a unit with its columns, in one piece."""
        (result,) = self.tables([table])
        return result

    def block(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield a block of somebody's dataset in pieces.

        Raises ConfigError for a column that is missing or clashes, where that could not be known before.
        """
        check_names(self._job, self._task, table.column_names)
        return self.tables(table.slice(start, PIECE_ROWS) for start in range(0, table.num_rows, PIECE_ROWS))

    def _with_keys(self, table: pa.Table) -> pa.Table:
        """Return the table with what its samples are drawn from.

        A block of a dataset does not know which rows it holds: without `key`, samples are drawn from the prompt, so
        that they depend on no other row.
        """
        if KEY in table.column_names:
            return table
        key = self._job.input.key
        own = [None] * table.num_rows if key is None else own_keys(table, key)
        prompts = table.column(PROMPT_TOKEN_IDS).to_pylist()
        keys = [name or _digest(prompt) for name, prompt in zip(own, prompts, strict=True)]
        return with_column(table, KEY, pa.array(keys, type=pa.string()))


def public(table: pa.Table) -> pa.Table:
    """Return a finished table without what the stages told each other."""
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != BACKEND_FACTS}
    return without_internal(table).replace_schema_metadata(metadata or None)


def _beside(records: pa.Table, results: pa.Table) -> pa.Table:
    schema = pa.schema([*records.schema, *results.schema], metadata=results.schema.metadata)
    return pa.Table.from_arrays([*records.columns, *results.columns], schema=schema)


def _name(run: Run) -> str:
    """Return what stands for the task on a replica: all its settings, and the model whose labels it may have."""
    return _digest([run.job.task.model_dump(mode="json"), run.model.identity])


def _digest(values: object) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
