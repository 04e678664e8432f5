"""What the compute side answers."""

from array import array
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The continuation of one request; `token_ids` includes the end-of-text or stop token that ended it.

    By beam search it also has a score (transformers' `sequences_scores`: the summed log-probability, divided by the
    length to the power of length_penalty), and where num_return_sequences asks for more, the next best: `alternatives`.
    """

    key: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    logprobs: tuple[float, ...] | None = None
    score: float | None = None
    alternatives: "tuple[Generated, ...]" = ()


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The log-likelihood of every label after the prompt, in nats, summed over the label's tokens.

    To a request that is `relative`, they may all be off by the same number.
    """

    key: str
    label_logprobs: tuple[float, ...]
    num_prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Classified:
    """The logits of the classification head, one per label."""

    key: str
    logits: tuple[float, ...]
    num_prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class SpanLogits:
    """The logits of each wanted token as an answer's first and as its last."""

    key: str
    start_logits: tuple[float, ...]
    end_logits: tuple[float, ...]
    num_prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The log-probability, in nats, of every token from the first that was asked for to the prompt's last."""

    key: str
    token_logprobs: tuple[float, ...]
    num_prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The vector of a text: an array of typecode "f" (float32), which numpy and Arrow read without a copy."""

    key: str
    vector: "array[float]"
    num_prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A request that could not be done; the others are not touched by it."""

    key: str
    error: str


HeadResult = Labelled | Classified | SpanLogits | Scored | Embedded

AnyResult = Generated | HeadResult | Failed
