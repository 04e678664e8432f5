"""Sequence: a request's changing state, from its prompt to its last token."""

from gptj_batch.requests import ConstraintState, Request


class Sequence:
    """Hold what one request has become so far.

    uid: the engine's own number for it, in order of arrival; two live requests may have the same key.
    token_ids: the prompt and all that was generated.
    num_cached_tokens: how many of them have their keys and values in the KV cache.
    block_table: the blocks that hold those, in order; empty while the sequence waits.
    constraint: where it stands in the request's constraint; None without one, and before its first token is chosen.
    is_live: False once it has finished, failed or been cancelled.
    """

    def __init__(self, uid: int, request: Request) -> None:
        self.uid = uid
        self.request = request
        self.token_ids = [int(token) for token in request.prompt_token_ids]
        self.generated_token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.num_prompt_tokens = len(self.token_ids)
        self.num_cached_tokens = 0
        self.block_table: list[int] = []
        self.constraint: ConstraintState | None = None
        self.is_live = True

    @property
    def num_tokens(self) -> int:
        """Return how many tokens there are, prompt included."""
        return len(self.token_ids)

    @property
    def num_pending_tokens(self) -> int:
        """Return how many tokens must still be fed before the next one can be chosen."""
        return len(self.token_ids) - self.num_cached_tokens

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        self.token_ids.append(token_id)
        self.generated_token_ids.append(token_id)
