"""Stopping: when a sequence is done, and why."""

from collections.abc import Sequence as Ordered

from gptj_batch.engine.sequence import Sequence
from gptj_batch.requests import Request, SamplingParams
from gptj_batch.results import FinishReason


def stop_token_ids(sampling: SamplingParams, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return the tokens that end a sequence with these parameters."""
    return sampling.stop_token_ids if sampling.ignore_eos else (*eos_token_ids, *sampling.stop_token_ids)


def must_go_on(sequence: Sequence) -> bool:
    """Say whether the next token may not end the sequence, since min_new_tokens is not reached."""
    return len(sequence.generated_token_ids) < sequence.request.sampling.min_new_tokens


def finish_reason(sequence: Sequence, eos_token_ids: tuple[int, ...]) -> FinishReason | None:
    """Return why the sequence is done after its last token, or None while it is not. Raises as `end_of` does."""
    return end_of(sequence.request, sequence.generated_token_ids, eos_token_ids)


def end_of(request: Request, generated: Ordered[int], eos_token_ids: tuple[int, ...]) -> FinishReason | None:
    """Return why `generated` is where this request's generation ends, or None where it goes on.

    The request's own stop condition is asked after every token, but not heeded before min_new_tokens is reached.
    Raises whatever that condition raises.
    """
    wants_stop = request.stop is not None and request.stop(generated)
    is_stop_token = generated[-1] in stop_token_ids(request.sampling, eos_token_ids)
    if (wants_stop or is_stop_token) and len(generated) >= request.sampling.min_new_tokens:
        return "stop"
    return "length" if len(generated) >= request.sampling.max_new_tokens else None
