"""The task `embed`: a text as a vector, made of the model's hidden states.

Adds `embedding`, a fixed-size list of n_embd float32. `pooling` is the mean over all tokens of the text or the last of
them, which alone has seen the whole text; padding is never fed, and so never counted. `layer` is a place in
transformers' `hidden_states`, as Python counts: 0 the token embeddings, i what comes out of block i, n_layer (and null,
and -1) the last, behind the final norm; -2 is what comes out of the last block but one. With `normalize` a vector has
length 1, unless it is all zeros.

Any GPT-J gives embeddings, whatever head it has or lacks; the head is not read. A text longer than the context is an
error, or is cut as `truncate` says.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from gptj_batch.errors import ConfigError
from gptj_batch.model_folder import Head
from gptj_batch.prompts.template import PromptTemplate
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import TruncationSide
from gptj_batch.requests import AnyRequest, EmbedRequest, Pooling
from gptj_batch.results import AnyResult, Embedded
from gptj_batch.tasks.base import Settings, column
from gptj_batch.tasks.prompted import PromptEncoder


class EmbedSettings(Settings):
    """The block `task` of a job of kind `embed`."""

    head: ClassVar[Head] = "none"
    kind: Literal["embed"]
    text: str = Field(min_length=1)
    """Template over the record's columns: the text that becomes a vector."""
    pooling: Pooling = "mean"
    """`mean`: over all tokens of the text. `last`: the last of them."""
    normalize: bool = False
    """Scale every vector to length 1, so that a product of two is their cosine."""
    layer: int | None = None
    """A place in transformers' `hidden_states`: 0 the token embeddings, n_layer the last; negative from the end.

    null is the last, behind the final norm.
    """
    truncate: TruncationSide = "error"
    """A text that does not fit: cut at its left or right end, or make it the row's error."""
    deduplicate: bool = False
    """Compute rows of the same text once."""


class EmbedTask:
    """See the module; `width` and `num_layers` are the model's. Raises ConfigError for a layer that it has not."""

    def __init__(self, settings: EmbedSettings, width: int, num_layers: int) -> None:
        if settings.layer is not None and not -num_layers - 1 <= settings.layer <= num_layers:
            raise ConfigError(
                f"task.layer: must lie between {-num_layers - 1} and {num_layers}, the model's layers (n_layer in "
                f"config.json; 0 is the token embeddings, negative counts from the end); got {settings.layer}"
            )
        self.settings = settings
        self.width = width
        self._template = PromptTemplate(settings.text, "task.text")
        self.head: Head = settings.head
        self.reads = self._template.columns
        self.notes_type = pa.null()  # the encoding of a text leaves nothing to remember

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError where the text uses a column that is not among `names`."""
        self._template.check_columns(names)

    @property
    def adds(self) -> pa.Schema:
        """Return the column that the task adds."""
        return pa.schema([pa.field("embedding", self.raw_type)])

    @property
    def raw_type(self) -> pa.DataType:
        """Return the packed form, which is that of the column."""
        return pa.list_(pa.float32(), self.width)

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Render the text. Raises RecordError."""
        return self._template.render(record)

    @property
    def deduplicate(self) -> bool:
        """Say whether rows of the same text are computed once."""
        return self.settings.deduplicate

    def encoder(self, tokenizer: Tokenizer, max_context_tokens: int) -> PromptEncoder:
        """Return the encoder of texts."""
        return PromptEncoder(self._template, self.settings.truncate, tokenizer, max_context_tokens)

    def request_maker(self, tokenizer: Tokenizer) -> "EmbedTask":
        """Return what makes requests: the task itself, since nothing needs the tokenizer."""
        return self

    def requests(self, key: str, prompt_token_ids: Sequence[int], notes: Any = None) -> list[AnyRequest]:
        """Return the row's one request."""
        settings = self.settings
        return [
            EmbedRequest(
                key=key,
                prompt_token_ids=prompt_token_ids,
                pooling=settings.pooling,
                layer=settings.layer,
                normalize=settings.normalize,
            )
        ]

    def pack(self, results: Sequence[AnyResult]) -> Any:
        """Return one row's vector: (width,), float32."""
        (result,) = results
        assert isinstance(result, Embedded) and len(result.vector) == self.width
        return np.frombuffer(result.vector, dtype=np.float32)

    def columns(self, raw: Sequence[Any], notes: Sequence[Any], tokenizer: Tokenizer) -> list[pa.Array]:
        """Return the added column."""
        return [column(raw, field) for field in self.adds]
