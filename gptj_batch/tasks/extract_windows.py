"""ExtractEncoder: a question and its context as tokens, encoded together, once, and the context cut into windows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptj_batch.demo import QUESTION_ANSWERING_LAYOUT, QUESTION_ANSWERING_PREFIX
from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.tasks.base import Encoded
from gptj_batch.tasks.prompted import rendered
from gptj_batch.tasks.spans import windows

if TYPE_CHECKING:
    from gptj_batch.tasks.extract import ExtractTask

MAX_OVERLAP_TOKENS = 128


class ExtractEncoder:
    """Encode records for a task. Raises ConfigError where its settings leave a context no room in a window."""

    def __init__(self, task: "ExtractTask", tokenizer: Tokenizer, max_context_tokens: int) -> None:
        self._task = task
        self._settings = settings = task.settings
        self._tokenizer = tokenizer
        self._window_tokens = min(max_context_tokens, settings.window_tokens or max_context_tokens)
        before, behind = QUESTION_ANSWERING_PREFIX.split("{question}")
        self._num_layout_tokens = sum(map(len, tokenizer.encode_batch([before.rstrip(), behind])))
        is_models = self._window_tokens == max_context_tokens
        window = (
            f"the model's context of {max_context_tokens} (n_positions in config.json)"
            if is_models
            else f"task.window_tokens ({self._window_tokens})"
        )
        smallest = self._window_tokens - self._num_layout_tokens - settings.max_question_tokens
        if smallest < 1:
            raise ConfigError(
                f"task.max_question_tokens: {settings.max_question_tokens} leave no room for a text in {window}; lower "
                f"it{'' if is_models else ', or raise task.window_tokens'}"
            )
        if settings.stride_tokens is not None and settings.stride_tokens >= smallest:
            raise ConfigError(
                f"task.stride_tokens: must be below {smallest}, the tokens of a window beside the longest question in "
                f"{window}, got {settings.stride_tokens}"
            )

    def __call__(self, records: Sequence[Mapping[str, Any] | RecordError]) -> list[Encoded | RecordError]:
        """Return each record's tokens, with notes on its context, or why there are none."""
        prompts = [rendered(record, self._task.prompt) for record in records]
        return [prompt if isinstance(prompt, RecordError) else self._encoded(*prompt) for prompt in prompts]

    def _encoded(self, question: str, context: str) -> Encoded | RecordError:
        prefix_chars = len(QUESTION_ANSWERING_PREFIX.format(question=question))
        layout = QUESTION_ANSWERING_LAYOUT.format(question=question, context=context)
        token_ids, offsets, words = self._tokenizer.encode_with_words(layout)
        num_prefix = sum(end <= prefix_chars for _, end in offsets)
        num_question = num_prefix - self._num_layout_tokens
        if num_question > self._settings.max_question_tokens:
            return RecordError(
                f"the question has {num_question} tokens and max_question_tokens is "
                f"{self._settings.max_question_tokens}; shorten it, or raise max_question_tokens"
            )
        shift = len(layout) - len(context)
        spans = (words if self._settings.align_to_words else offsets)[num_prefix:]
        chars = [_trimmed(context, start - shift, end - shift) for start, end in spans]
        room = self._window_tokens - num_prefix
        overlap = self._settings.stride_tokens
        overlap = min(MAX_OVERLAP_TOKENS, room // 2) if overlap is None else overlap
        cut = windows(len(token_ids) - num_prefix, room, overlap)
        notes = {
            "context": context,
            "num_prefix": num_prefix,
            "starts": [start for start, _ in chars],
            "ends": [end for _, end in chars],
            "windows": [window._asdict() for window in cut],
        }
        return Encoded(token_ids=token_ids, notes=notes)


def _trimmed(context: str, start: int, end: int) -> tuple[int, int]:
    """Return a token's characters without white space at its ends; none, start == end, for white space alone."""
    text = context[max(start, 0) : end] if end > 0 else ""
    kept = text.strip()
    first = max(start, 0) + len(text) - len(text.lstrip())
    return (first, first + len(kept)) if kept else (first, first)
