"""The columns that travel between stages and never reach the output."""

from collections.abc import Sequence

import pyarrow as pa

PREFIX = "__gptj_batch_"

UNIT = PREFIX + "unit"
KEY = PREFIX + "key"
PROMPT_TOKEN_IDS = PREFIX + "prompt_token_ids"
NUM_PROMPT_TOKENS = PREFIX + "num_prompt_tokens"
NUM_DROPPED_TOKENS = PREFIX + "num_dropped_tokens"
NOTES = PREFIX + "notes"
ERROR = PREFIX + "error"
RAW = PREFIX + "raw"
NUM_GENERATED_TOKENS = PREFIX + "num_generated_tokens"
IS_DUPLICATE = PREFIX + "is_duplicate"

# The schema metadata key under which the replica says what it computed with.
BACKEND_FACTS = b"gptj_batch_backend"


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Return the table with one more internal column."""
    return table.append_column(pa.field(name, values.type), values)


def without_internal(table: pa.Table) -> pa.Table:
    """Return the table without any internal column."""
    return table.drop_columns([name for name in table.column_names if name.startswith(PREFIX)])


def strings(table: pa.Table, name: str) -> Sequence[str | None]:
    """Return a text column as Python values."""
    values: list[str | None] = table.column(name).to_pylist()
    return values
