"""What the compute side is asked: token ids only, no text, no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self, get_args, runtime_checkable

# The length of a text to this power still fits a float32, with room for its log-probability.
MAX_LENGTH_PENALTY = 10.0


class StopCondition(Protocol):
    """Decides after every generated token whether a sequence is done (stop strings are built on this in `stages`)."""

    def __call__(self, generated_token_ids: Sequence[int]) -> bool:
        """Return True when the last token of `generated_token_ids` completes a stop."""
        ...


Allowed = bytes | tuple[int, ...]
"""Token ids that may come next, in the form that costs less: as they are, where they are few; or a bit a token, that of
token i in byte i // 8, the lowest bit first. Tokens behind the last byte may not come."""


class ConstraintState(Protocol):
    """Where one sequence stands in its constraint.

    It speaks of tokens that stand for text. Those that end a sequence (end of text, stop tokens) are the engine's: they
    are allowed where `may_end`, whatever else a token means.
    """

    def allowed(self) -> Allowed:
        """Return the tokens that may come next, none where nothing can follow."""
        ...

    def accept(self, token_id: int) -> None:
        """Go on by one token, one of those that were allowed."""
        ...

    @property
    def may_end(self) -> bool:
        """Say whether what was accepted so far is whole."""
        ...

    @property
    def is_complete(self) -> bool:
        """Say whether it is whole and nothing can follow: the sequence then ends without an end of text."""
        ...


class Constraint(Protocol):
    """What a continuation must look like; shared by requests, so it holds no state of any of them.

    One that is made anew for every row may have an `identity`: a value that is equal where it allows the same.
    """

    def start(self) -> ConstraintState:
        """Return the state of a sequence that has generated nothing yet."""
        ...


@dataclass(frozen=True, kw_only=True)
class Language:
    """The texts that a constraint allows, in words that another engine knows too; one of the two is set.

    regex: of the whole text, in the syntax of Rust's regex    json_schema: JSON, with llguidance's `x-guidance` in it
    """

    regex: str | None = None
    json_schema: str | None = None


@runtime_checkable
class Described(Protocol):
    """A constraint that can say which texts it allows."""

    @property
    def language(self) -> Language:
        """Return what it allows."""
        ...


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen.

    temperature 0.0 is greedy decoding; then top_k, top_p, min_p and seed play no part. top_k 0 and top_p 1.0 are off.
    The filters apply in transformers' order: repetition penalty, temperature, top_k, top_p, min_p.
    num_beams above 1 is beam search, which draws nothing; length_penalty, early_stopping and num_return_sequences mean
    what they mean in transformers and play no part without beams.
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
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1

    @classmethod
    def mlperf_gptj(cls) -> Self:
        """Return the decoding that MLPerf Inference prescribes for GPT-J's summaries of news."""
        return cls(max_new_tokens=128, min_new_tokens=30, num_beams=4, early_stopping=True)

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
            "num_beams": (self.num_beams >= 1, "1 (no beam search) or more"),
            "length_penalty": (abs(self.length_penalty) <= MAX_LENGTH_PENALTY, f"within {MAX_LENGTH_PENALTY} of 0"),
            "early_stopping": (
                isinstance(self.early_stopping, bool) or self.early_stopping == "never",
                'True, False or "never"',
            ),
            "num_return_sequences": (
                1 <= self.num_return_sequences <= max(1, self.num_beams),
                f"between 1 and num_beams ({self.num_beams})",
            ),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")
        if self.num_beams > 1 and self.temperature > 0.0:
            raise ValueError(
                f"num_beams {self.num_beams} is beam search, which draws nothing: temperature must then be 0.0, got "
                f"{self.temperature}; set it to 0.0, or num_beams to 1 to sample"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to be continued.

    With a constraint, every token is one that it allows, and the sequence ends (finish_reason "stop") where it permits
    an end and the model or `stop` ends it, or at once when it is complete. max_new_tokens may cut it before that.
    """

    key: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: StopCondition | None = None
    constraint: Constraint | None = None


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
