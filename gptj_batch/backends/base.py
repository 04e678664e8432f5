"""Backend: what a replica needs of whatever runs the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gptj_batch.requests import AnyRequest
from gptj_batch.results import AnyResult, Failed, Generated


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """The tokens of all results handed out so far, failed requests not counted."""

    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0

    def plus(self, result: AnyResult) -> "TokenCounts":
        """Return the counts with one more result."""
        if isinstance(result, Failed):
            return self
        return TokenCounts(
            num_prompt_tokens=self.num_prompt_tokens + result.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens
            + (len(result.token_ids) if isinstance(result, Generated) else 0),
        )


class Backend(Protocol):
    """Run requests. Every method may be called from several threads at once."""

    def run(self, requests: Sequence[AnyRequest]) -> list[AnyResult]:
        """Return one result per request, in the same order; a request that cannot be done gives `Failed`.

        Raises BackendError when the engine itself has failed.
        """
        ...

    def counts(self) -> TokenCounts:
        """Return the tokens done so far."""
        ...

    def describe(self) -> dict[str, str | int]:
        """Return plain facts about what runs: kind, device, dtype and sizes."""
        ...

    def close(self) -> None:
        """Stop, and free what is held; later calls of `run` raise BackendError."""
        ...


@runtime_checkable
class Stepping(Protocol):
    """A backend that works in steps; that it makes them shows that it does not hang, long before a result comes."""

    @property
    def num_steps(self) -> int:
        """Return how many steps were made so far."""
        ...
