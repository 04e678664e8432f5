"""Stopping: when a sequence is done, and why."""

from collections.abc import Iterator
from collections.abc import Sequence as Ordered
from contextlib import contextmanager

from gptj_batch.engine.sequence import Sequence
from gptj_batch.requests import ConstraintState, Request, SamplingParams
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

    To be called once a token, as its constraint hears of the token here. Where the constraint permits no end, neither
    a stop token nor the request's stop condition is heeded. Raises RequestCodeError where either raises.
    """
    return ending(sequence.request, sequence.generated_token_ids, sequence.constraint, eos_token_ids)


def ending(
    request: Request, generated: Ordered[int], constraint: ConstraintState | None, eos_token_ids: tuple[int, ...]
) -> FinishReason | None:
    """Return the same of a request that is no sequence of this engine; `constraint` is where it stands in its own."""
    is_complete, may_end = False, True
    if constraint is not None:
        with blaming("constraint"):
            if generated[-1] not in stop_token_ids(request.sampling, eos_token_ids):
                constraint.accept(generated[-1])
            is_complete, may_end = constraint.is_complete, constraint.may_end
    wants_end = wants_to_end(request, generated, eos_token_ids) or is_complete
    return reason_to_end(request.sampling, len(generated), wants_end and may_end)


def wants_to_end(request: Request, generated: Ordered[int], eos_token_ids: tuple[int, ...]) -> bool:
    """Say whether the last token is one that ends, or completes what the request's own stop condition waits for.

    That condition is asked after every token. Raises RequestCodeError where it raises.
    """
    wants_stop = False
    if request.stop is not None:
        with blaming("stop condition"):
            wants_stop = request.stop(generated)
    return wants_stop or generated[-1] in stop_token_ids(request.sampling, eos_token_ids)


def reason_to_end(sampling: SamplingParams, num_generated: int, wants_end: bool) -> FinishReason | None:
    """Return why a sequence ends after so many tokens, or None: no stop is heeded before min_new_tokens is reached."""
    if wants_end and num_generated >= sampling.min_new_tokens:
        return "stop"
    return "length" if num_generated >= sampling.max_new_tokens else None
