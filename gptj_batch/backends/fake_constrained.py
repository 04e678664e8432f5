"""What FakeBackend makes of a request with a constraint: tokens by number among those that are allowed."""

from collections.abc import Callable

from gptj_batch.requests import Allowed, ConstraintState, Request
from gptj_batch.results import Failed, Generated


def follow(request: Request, number_at: Callable[[int], int]) -> Generated | Failed:
    """Continue a request within its constraint; where that permits an end, every other number takes it.

    number_at: how many tokens there are so far -> the number that picks the next one
    """
    try:
        return _follow(request, number_at)
    except Exception as error:  # noqa: BLE001 - the request's own code, as in the engine
        return Failed(key=request.key, error=f"the request's constraint raised {type(error).__name__}; correct it")


def _follow(request: Request, number_at: Callable[[int], int]) -> Generated | Failed:
    assert request.constraint is not None
    sampling, state = request.sampling, request.constraint.start()
    token_ids: list[int] = []
    is_over = False
    while not is_over and len(token_ids) < sampling.max_new_tokens:
        number = number_at(len(token_ids))
        may_end = _may_end(state, len(token_ids), request)
        options = _listed(state.allowed())
        if not options and not may_end:
            return Failed(
                key=request.key, error=f"the request's constraint allows no token after {len(token_ids)} generated ones"
            )
        if may_end and (not options or number % 2):
            is_over = True
        else:
            token_ids.append(options[number // 2 % len(options)])
            state.accept(token_ids[-1])
            is_over = state.is_complete and _may_end(state, len(token_ids), request)
    logprobs = tuple(-(number_at(place) % 1000) / 250 for place in range(len(token_ids)))
    return Generated(
        key=request.key,
        token_ids=tuple(token_ids),
        finish_reason="stop" if is_over else "length",
        num_prompt_tokens=len(request.prompt_token_ids),
        logprobs=logprobs if sampling.logprobs else None,
    )


def _may_end(state: ConstraintState, num_tokens: int, request: Request) -> bool:
    return state.may_end and num_tokens >= request.sampling.min_new_tokens


def _listed(allowed: Allowed) -> list[int]:
    """Return the ids of allowed tokens, in order."""
    if not isinstance(allowed, bytes):
        return sorted(allowed)
    return [8 * place + bit for place, byte in enumerate(allowed) if byte for bit in range(8) if byte >> bit & 1]
