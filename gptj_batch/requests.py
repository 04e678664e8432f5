"""What the compute side is asked: token ids only, no text, no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args


class StopCondition(Protocol):
    """Decides after every generated token whether a sequence is done (stop strings are built on this in `stages`)."""

    def __call__(self, generated_token_ids: Sequence[int]) -> bool:
        """Return True when the last token of `generated_token_ids` completes a stop."""
        ...


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen.

    temperature 0.0 is greedy decoding; then top_k, top_p, min_p and seed play no part. top_k 0 and top_p 1.0 are off.
    The filters apply in transformers' order: repetition penalty, temperature, top_k, top_p, min_p.
    Raises ValueError for a value outside its range.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no decoding could honour."""
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            "temperature": (0.0 <= self.temperature < float("inf"), "0.0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0.0, at most 1.0"),
            "min_p": (0.0 <= self.min_p <= 1.0, "between 0.0 and 1.0"),
            "repetition_penalty": (0.0 < self.repetition_penalty < float("inf"), "above 0.0"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to be continued."""

    key: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: StopCondition | None = None


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """A prompt whose given continuations (labels) are to be scored, each as if it were alone.

    relative: only differences between the labels matter. The log-likelihoods may then all be off by the same number,
    which spares the normaliser over the vocabulary behind the prompt.
    """

    key: str
    prompt_token_ids: Sequence[int]
    label_token_ids: tuple[tuple[int, ...], ...]
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest:
    """A text that a classification head is to judge, by its last token."""

    key: str
    prompt_token_ids: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class SpanRequest:
    """A question and its context, for the question-answering head.

    first_token: the place in `prompt_token_ids` from which on each token's logits are wanted
    """

    key: str
    prompt_token_ids: Sequence[int]
    first_token: int


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """A text whose tokens' probabilities are wanted, each given all before it.

    first_token: the place in `prompt_token_ids` of the first token to be scored, at least 1; before it is the context
    """

    key: str
    prompt_token_ids: Sequence[int]
    first_token: int = 1


Pooling = Literal["mean", "last"]


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """A text to be turned into a vector.

    pooling: the mean over all its tokens, or the last one
    layer: a place in transformers' `hidden_states`: 0 the embedding, n_layer the last, behind the final norm; negative
    ones count from the end; None is the last
    normalize: scale the vector to length 1
    Raises ValueError for a pooling that there is not.
    """

    key: str
    prompt_token_ids: Sequence[int]
    pooling: Pooling = "mean"
    layer: int | None = None
    normalize: bool = False

    def __post_init__(self) -> None:
        """Refuse a pooling that there is not."""
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {self.pooling!r}")


HeadRequest = LabelRequest | ClassifyRequest | SpanRequest | ScoreRequest | EmbedRequest
"""What one pass over the prompt answers, without generating."""

AnyRequest = Request | HeadRequest
