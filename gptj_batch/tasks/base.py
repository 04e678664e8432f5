"""What the pipeline asks of a task; the spine in `pipelines.build` knows no more of it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import TruncationSide
from gptj_batch.requests import AnyRequest
from gptj_batch.results import AnyResult

ERROR_COLUMN = "error"


class Settings(BaseModel):
    """Base of everything a user writes: checked, frozen, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), use_attribute_docstrings=True
    )


class RequestMaker(Protocol):
    """Turns one row's token ids into the engine's requests; made once per process, where the tokenizer is."""

    @property
    def reserved_tokens(self) -> int:
        """Return how many tokens must fit into the context behind the prompt."""
        ...

    def requests(self, key: str, prompt_token_ids: Sequence[int]) -> list[AnyRequest]:
        """Return the row's requests, always the same number of them.

        `key` names the row, and is what sampling draws from besides the seed.
        """
        ...


class Task(Protocol):
    """One kind of work. Plain values only, since it is shipped to every worker."""

    @property
    def reads(self) -> frozenset[str]:
        """Return the input columns that the task's templates use."""
        ...

    @property
    def adds(self) -> pa.Schema:
        """Return the columns that the task adds, without `error`."""
        ...

    @property
    def raw_type(self) -> pa.DataType:
        """Return the type of what one row's results are packed into between the replica and `columns`."""
        ...

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError where a template uses a column that is not among `names`."""
        ...

    @property
    def truncate(self) -> TruncationSide:
        """Return which side of a prompt is cut where it does not fit the context."""
        ...

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Render the record's prompt. Raises RecordError."""
        ...

    def request_maker(self, tokenizer: Tokenizer) -> RequestMaker:
        """Return the maker of this task's requests. Raises ConfigError for settings that the tokenizer rules out."""
        ...

    def pack(self, results: Sequence[AnyResult]) -> Any:
        """Return one row's results as a value of `raw_type`. No result is a `Failed`."""
        ...

    def columns(self, raw: Sequence[Any], tokenizer: Tokenizer) -> list[pa.Array]:
        """Return the columns of `adds`, from one value of `raw_type` a row; None, for a failed row, gives nulls."""
        ...


def column(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Return the values as an Arrow array of the field's type."""
    return pa.array(values, type=field.type)
