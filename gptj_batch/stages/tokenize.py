"""The second stage: records in, the token ids of their prompts beside them out."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

import pyarrow as pa

from gptj_batch.errors import RecordError
from gptj_batch.model_folder import resolve_folder
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.records.rows import records_of
from gptj_batch.stages.columns import ERROR, NOTES, NUM_DROPPED_TOKENS, PROMPT_TOKEN_IDS, with_column
from gptj_batch.tasks.base import Encoded, Task

ENCODE_ROWS = 256


@lru_cache(maxsize=2)
def load_tokenizer(model_path: str, revision: str | None) -> Tokenizer:
    """Return a model's tokenizer; a worker process loads it once, since it serves one unit after the other.

    Whatever its head, the demo model has the same.
    """
    return Tokenizer.from_folder(resolve_folder(model_path, revision))


class TokenizeStage:
    """Render and encode prompts.

    A record that cannot be rendered, has no tokens or does not fit gets its reason in the error column.
    """

    def __init__(self, task: Task, model_path: str, revision: str | None, max_context_tokens: int) -> None:
        self._task = task
        self._model = (model_path, revision)
        self._max_context_tokens = max_context_tokens

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add the prompt's token ids, how many were cut, the task's notes, and the error."""
        return self._with_columns(table, list(self._encoded(table)))

    def leave_out(self, table: pa.Table, error: str) -> pa.Table:
        """Return the table with this error for every row; see `CarefulStage`."""
        return self._with_columns(table, [RecordError(error)] * table.num_rows)

    def _with_columns(self, table: pa.Table, rows: list[Encoded | RecordError]) -> pa.Table:
        good = [row if isinstance(row, Encoded) else None for row in rows]
        token_ids = [None if row is None else row.token_ids for row in good]
        dropped = [None if row is None else row.num_dropped_tokens for row in good]
        notes = [None if row is None else row.notes for row in good]
        errors = [None if isinstance(row, Encoded) else str(row) for row in rows]
        table = with_column(table, PROMPT_TOKEN_IDS, pa.array(token_ids, type=pa.list_(pa.int32())))
        table = with_column(table, NUM_DROPPED_TOKENS, pa.array(dropped, type=pa.int32()))
        table = with_column(table, NOTES, pa.array(notes, type=self._task.notes_type))
        return with_column(table, ERROR, pa.array(errors, type=pa.string()))

    def _encoded(self, table: pa.Table) -> Iterator[Encoded | RecordError]:
        """Yield each record's tokens, or why there are none."""
        encode = self._task.encoder(load_tokenizer(*self._model), self._max_context_tokens)
        records = records_of(table, sorted(self._task.reads))
        while some := list(islice(records, ENCODE_ROWS)):
            yield from encode(some)
