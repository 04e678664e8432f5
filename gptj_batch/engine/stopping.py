"""Stopping: when a sequence is done, and why."""

from collections.abc import Iterator
from contextlib import contextmanager

from gptj_batch.engine.sequence import Sequence
from gptj_batch.requests import SamplingParams
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

    To be called once a token, as its constraint hears of the token here. The request's own stop condition
    is asked after every token, but not heeded before min_new_tokens is reached, nor where the constraint permits no
    end. Raises RequestCodeError where the condition or the constraint raises.
    """
    request, generated, constraint = sequence.request, sequence.generated_token_ids, sequence.constraint
    is_stop_token = generated[-1] in stop_token_ids(request.sampling, eos_token_ids)
    is_complete, may_end = False, True
    if constraint is not None:
        with blaming("constraint"):
            if not is_stop_token:
                constraint.accept(generated[-1])
            is_complete, may_end = constraint.is_complete, constraint.may_end
    wants_stop = False
    if request.stop is not None:
        with blaming("stop condition"):
            wants_stop = request.stop(generated)
    if (wants_stop or is_stop_token or is_complete) and may_end and not must_go_on(sequence):
        return "stop"
    return "length" if len(generated) >= request.sampling.max_new_tokens else None
