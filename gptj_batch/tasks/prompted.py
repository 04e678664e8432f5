"""PromptEncoder: for tasks that show the model one prompt, which must fit its context with something behind it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import TruncationSide, truncate
from gptj_batch.tasks.base import Encoded

Rendered = TypeVar("Rendered")


class PromptEncoder:
    """Render and encode prompts, and cut or refuse those that do not fit.

    render: record -> prompt, raises RecordError    reserved_tokens: what must fit into the context behind the prompt
    Raises ConfigError where that leaves no room.
    """

    def __init__(
        self,
        render: Callable[[Mapping[str, Any]], str],
        side: TruncationSide,
        tokenizer: Tokenizer,
        max_context_tokens: int,
        reserved_tokens: int = 0,
    ) -> None:
        if reserved_tokens >= max_context_tokens:
            raise ConfigError(
                f"task: {reserved_tokens} tokens behind the prompt (max_new_tokens, or the longest label) leave no "
                f"room in the model's context of {max_context_tokens} (n_positions in config.json)"
            )
        self._render = render
        self._side = side
        self._tokenizer = tokenizer
        self._max_tokens = max_context_tokens - reserved_tokens

    def __call__(self, records: Sequence[Mapping[str, Any] | RecordError]) -> list[Encoded | RecordError]:
        """Return each record's tokens, or why there are none: it cannot be rendered, is empty, or does not fit."""
        prompts = [rendered(record, self._render) for record in records]
        ids = iter(self._tokenizer.encode_batch([prompt for prompt in prompts if isinstance(prompt, str)]))
        return [self._fitted(next(ids)) if isinstance(prompt, str) else prompt for prompt in prompts]

    def _fitted(self, ids: list[int]) -> Encoded | RecordError:
        if not ids:
            return RecordError("the rendered prompt is empty: a model needs at least one token to go on from")
        try:
            kept, num_dropped = truncate(ids, self._max_tokens, self._side)
        except RecordError as error:
            return error
        return Encoded(token_ids=kept, num_dropped_tokens=num_dropped)


def rendered(
    record: Mapping[str, Any] | RecordError, render: Callable[[Mapping[str, Any]], Rendered]
) -> Rendered | RecordError:
    """Return what a record becomes, or why it becomes nothing."""
    if isinstance(record, RecordError):
        return record
    try:
        return render(record)
    except RecordError as error:
        return error
