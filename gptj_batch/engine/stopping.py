"""Stopping: when a sequence is done, and why."""

from collections.abc import Iterator
from collections.abc import Sequence as Ordered
from contextlib import contextmanager

from gptj_batch.engine.sequence import Sequence
from gptj_batch.requests import Request, SamplingParams
from gptj_batch.results import FinishReason


class RequestCodeError(Exception):
    """Code that came with a request raised. The message names the part and the kind of error, and quotes nothing."""


@contextmanager
def blaming(part: str) -> Iterator[None]:
    """Raise RequestCodeError for whatever is raised inside."""
    try:
        yield
    except Exception as error:  # its own message might quote the record
        raise RequestCodeError(f"the request's {part} raised {type(error).__name__}; correct it") from error


def stop_token_ids(sampling: SamplingParams, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return the tokens that end a sequence with these parameters."""
    return sampling.stop_token_ids if sampling.ignore_eos else (*eos_token_ids, *sampling.stop_token_ids)


def must_go_on(sequence: Sequence) -> bool:
    """Say whether the next token may not end the sequence, since min_new_tokens is not reached."""
    return len(sequence.generated_token_ids) < sequence.request.sampling.min_new_tokens


def finish_reason(sequence: Sequence, eos_token_ids: tuple[int, ...]) -> FinishReason | None:
    """Return why the sequence is done after its last token, or None while it is not.

    To be called once a token: its constraint hears of the token here, unless that is one that ends a sequence. A stop
    is heeded where the constraint permits an end; one that is complete is a stop. Raises RequestCodeError where the
    constraint or the request's stop condition raises.
    """
    generated, constraint = sequence.generated_token_ids, sequence.constraint
    is_complete, may_end = False, True
    if constraint is not None:
        with blaming("constraint"):
            if generated[-1] not in stop_token_ids(sequence.request.sampling, eos_token_ids):
                constraint.accept(generated[-1])
            is_complete, may_end = constraint.is_complete, constraint.may_end
    with blaming("stop condition"):
        reason = end_of(sequence.request, generated, eos_token_ids)
    if is_complete and not must_go_on(sequence):
        return "stop"
    if reason == "stop" and not may_end:
        return "length" if len(generated) >= sequence.request.sampling.max_new_tokens else None
    return reason


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
