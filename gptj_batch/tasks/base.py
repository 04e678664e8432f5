"""What the pipeline asks of a task; the spine in `pipelines.build` knows no more of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from gptj_batch.errors import RecordError
from gptj_batch.model_folder import Head
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import AnyRequest
from gptj_batch.results import AnyResult

ERROR_COLUMN = "error"
# Added columns that hold what a record says or a model answers to it: never shown in a log or a report.
FREE_TEXT_COLUMNS = frozenset({"generated_text", "answer_text", "answers"})


class Settings(BaseModel):
    """Base of everything a user writes: checked, frozen, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), use_attribute_docstrings=True
    )


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A record's prompt as tokens; `notes` is what the task wants to know of it later, a value of its `notes_type`."""

    token_ids: Sequence[int]
    num_dropped_tokens: int = 0
    notes: Any = None


class Encoder(Protocol):
    """Turns records into token ids; made once per process, where the tokenizer is."""

    def __call__(self, records: Sequence[Mapping[str, Any] | RecordError]) -> list[Encoded | RecordError]:
        """Return each record's tokens, or why there are none."""
        ...


class RequestMaker(Protocol):
    """Turns one row's token ids into the engine's requests; made once per process, where the tokenizer is."""

    def requests(self, key: str, prompt_token_ids: Sequence[int], notes: Any = None) -> list[AnyRequest]:
        """Return the row's requests; none where nothing needs to be asked.

        `key` names the row, and is what sampling draws from besides the seed.
        """
        ...


class Task(Protocol):
    """One kind of work. Plain values only, since it is shipped to every worker."""

    @property
    def head(self) -> Head:
        """Return the head that the model must have."""
        ...

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

    @property
    def notes_type(self) -> pa.DataType:
        """Return the type of what a row's encoding leaves for `requests` and `columns`; null where that is nothing."""
        ...

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError where a template uses a column that is not among `names`."""
        ...

    def encoder(self, tokenizer: Tokenizer, max_context_tokens: int) -> Encoder:
        """Return what renders and encodes this task's records.

        Raises ConfigError for settings that the tokenizer, or a context of so many tokens, rules out.
        """
        ...

    def request_maker(self, tokenizer: Tokenizer) -> RequestMaker:
        """Return the maker of this task's requests. Raises ConfigError for settings that the tokenizer rules out."""
        ...

    def pack(self, results: Sequence[AnyResult]) -> Any:
        """Return the results of a row's requests, in their order, as a value of `raw_type`. None is a `Failed`."""
        ...

    def columns(self, raw: Sequence[Any], notes: Sequence[Any], tokenizer: Tokenizer) -> list[pa.Array]:
        """Return the columns of `adds`, from one value of `raw_type` and one of `notes_type` a row.

        None for a failed row's raw value gives nulls.
        """
        ...


@runtime_checkable
class Calibrated(Protocol):
    """A task that wants to know something of the model before the first row."""

    def baseline_requests(self, tokenizer: Tokenizer) -> list[AnyRequest]:
        """Return what the model is asked once, by itself; nothing where the settings do not want it."""
        ...

    def with_baseline(self, results: Sequence[AnyResult], tokenizer: Tokenizer) -> Task:
        """Return the task that knows the results of these requests. Raises BackendError where one of them failed."""
        ...


@runtime_checkable
class Deduplicated(Protocol):
    """A task that may want equal requests of several rows to be computed once."""

    @property
    def deduplicate(self) -> bool:
        """Say whether it wants that."""
        ...


def column(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Return the values as an Arrow array of the field's type."""
    return pa.array(values, type=field.type)
