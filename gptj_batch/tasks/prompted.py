"""PromptEncoder: for tasks that show the model one prompt, which must fit its context with something behind it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.prompts.template import PromptTemplate, Rendered
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import TruncationSide, fitted
from gptj_batch.tasks.base import Encoded

T = TypeVar("T")
Record = Mapping[str, Any] | RecordError


class PromptEncoder:
    """Render and encode prompts, and cut or refuse those that do not fit.

    prompt: the template, whose own text is never cut
    reserved_tokens: what must fit into the context behind the prompt
    Raises ConfigError where that, or the template's own text, leaves no room.
    """

    def __init__(
        self,
        prompt: PromptTemplate,
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
        self._prompt = prompt
        self._side = side
        self._tokenizer = tokenizer
        self._max_context_tokens = max_context_tokens
        self._reserved_tokens = reserved_tokens
        self._check_own_text(prompt)

    def __call__(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        """Return each record's tokens, or why there are none: it cannot be rendered, is empty, or does not fit."""
        return self.encode(records, [self._reserved_tokens] * len(records))

    def encode(self, records: Sequence[Record], reserved_tokens: Sequence[int]) -> list[Encoded | RecordError]:
        """Return the same as a call, with so many tokens kept free behind each record's prompt."""
        prompts = [rendered(record, self._prompt.render_with_spans) for record in records]
        ids = iter(self._tokenizer.encode_batch([prompt.text for prompt in prompts if isinstance(prompt, Rendered)]))
        return [
            self._fitted(prompt, next(ids), self._max_context_tokens - reserved)
            if isinstance(prompt, Rendered)
            else prompt
            for prompt, reserved in zip(prompts, reserved_tokens, strict=True)
        ]

    def _fitted(self, prompt: Rendered, ids: list[int], max_tokens: int) -> Encoded | RecordError:
        if not ids:
            return RecordError("the rendered prompt is empty: a model needs at least one token to go on from")
        try:
            kept, num_dropped = fitted(prompt, ids, max_tokens, self._side, self._tokenizer)
        except RecordError as error:
            return error
        return Encoded(token_ids=kept, num_dropped_tokens=num_dropped)

    def _check_own_text(self, template: PromptTemplate) -> None:
        """Raise ConfigError where the template leaves no row any room, as far as that can be said without a row."""
        (own,) = self._tokenizer.encode_batch([template.own_text or ""])
        room = self._max_context_tokens - self._reserved_tokens
        if len(own) > room:
            raise ConfigError(
                f"{template.setting}: the template's own text has {len(own)} tokens and {room} fit, the model's "
                f"context (n_positions in config.json) less {self._reserved_tokens} behind the prompt (max_new_tokens, "
                "or the longest label); shorten it"
            )


def rendered(record: Record, render: Callable[[Mapping[str, Any]], T]) -> T | RecordError:
    """Return what a record becomes, or why it becomes nothing."""
    if isinstance(record, RecordError):
        return record
    try:
        return render(record)
    except RecordError as error:
        return error
