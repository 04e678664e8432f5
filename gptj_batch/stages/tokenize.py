"""The second stage: records in, the token ids of their prompts beside them out."""

from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa

from gptj_batch.errors import RecordError
from gptj_batch.model_folder import resolve_folder
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import truncate
from gptj_batch.records.rows import records_of
from gptj_batch.stages.columns import ERROR, NUM_DROPPED_TOKENS, PROMPT_TOKEN_IDS, with_column
from gptj_batch.tasks.base import Task

ENCODE_ROWS = 256


@lru_cache(maxsize=2)
def load_tokenizer(model_path: str, revision: str | None) -> Tokenizer:
    """Return a model's tokenizer; a worker process loads it once, since it serves one unit after the other."""
    return Tokenizer.from_folder(resolve_folder(model_path, revision))


class TokenizeStage:
    """Render and encode prompts, and cut or refuse those that do not fit.

    A record that cannot be rendered, has no tokens or does not fit gets its reason in the error column.
    """

    def __init__(self, task: Task, model_path: str, revision: str | None, max_context_tokens: int) -> None:
        self._task = task
        self._model = (model_path, revision)
        self._max_context_tokens = max_context_tokens

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add the prompt's token ids, how many were cut, and the error."""
        tokenizer = load_tokenizer(*self._model)
        max_tokens = self._max_context_tokens - self._task.request_maker(tokenizer).reserved_tokens
        token_ids: list[list[int] | None] = []
        dropped: list[int | None] = []
        errors: list[str | None] = []
        for prompt, ids in self._encoded(table, tokenizer):
            try:
                kept, num_dropped = self._fitted(prompt, ids, max_tokens)
            except RecordError as error:
                kept, num_dropped = None, None
                errors.append(str(error))
            else:
                errors.append(None)
            token_ids.append(kept)
            dropped.append(num_dropped)
        table = with_column(table, PROMPT_TOKEN_IDS, pa.array(token_ids, type=pa.list_(pa.int32())))
        table = with_column(table, NUM_DROPPED_TOKENS, pa.array(dropped, type=pa.int32()))
        return with_column(table, ERROR, pa.array(errors, type=pa.string()))

    def _encoded(self, table: pa.Table, tokenizer: Tokenizer) -> Iterator[tuple[str | RecordError, list[int]]]:
        """Yield each record's prompt, or why there is none, and its token ids."""
        prompts = list(self._prompts(table))
        for start in range(0, len(prompts), ENCODE_ROWS):
            some = prompts[start : start + ENCODE_ROWS]
            ids = iter(tokenizer.encode_batch([prompt for prompt in some if isinstance(prompt, str)]))
            for prompt in some:
                yield prompt, next(ids) if isinstance(prompt, str) else []

    def _prompts(self, table: pa.Table) -> Iterator[str | RecordError]:
        for record in records_of(table, sorted(self._task.reads)):
            if isinstance(record, RecordError):
                yield record
                continue
            try:
                yield self._task.prompt(record)
            except RecordError as error:
                yield error

    def _fitted(self, prompt: str | RecordError, ids: list[int], max_tokens: int) -> tuple[list[int], int]:
        if isinstance(prompt, RecordError):
            raise prompt
        if not ids:
            raise RecordError("the rendered prompt is empty: a model needs at least one token to go on from")
        kept, num_dropped = truncate(ids, max_tokens, self._task.truncate)
        return list(kept), num_dropped
