"""Limits: what a request must satisfy to be able to run at all."""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Final

from gptj_batch.errors import shorten
from gptj_batch.model_folder import Head
from gptj_batch.requests import (
    AnyRequest,
    ClassifyRequest,
    EmbedRequest,
    HeadRequest,
    LabelRequest,
    Request,
    ScoreRequest,
    SpanRequest,
)

# The head that a request needs; "none" is had by every model.
HEAD_OF: Final[dict[type[AnyRequest], Head]] = {
    Request: "causal-lm",
    LabelRequest: "causal-lm",
    ClassifyRequest: "sequence-classification",
    SpanRequest: "question-answering",
    ScoreRequest: "causal-lm",
    EmbedRequest: "none",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds that the model, its head and the whole KV cache put on a single request."""

    vocab_size: int
    n_positions: int
    cache_tokens: int
    head: Head = "causal-lm"
    n_layer: int = 1

    def refuse(self, request: AnyRequest) -> str | None:
        """Return why `request` can never run, or None: the rule, the values found, what to do."""
        needed = HEAD_OF[type(request)]
        if needed not in (self.head, "none"):
            found = "no head" if self.head == "none" else f"a {self.head} head"
            return (
                f"a {type(request).__name__} needs a model with a {needed} head, and this one has {found}; load the "
                "checkpoint that was trained for it"
            )
        problem = self._refuse_tokens("prompt_token_ids", request.prompt_token_ids)
        if problem is not None:
            return problem
        if isinstance(request, Request):
            return self._refuse_length(request)
        return self._refuse_labels(request) if isinstance(request, LabelRequest) else self._refuse_prompt(request)

    def _refuse_tokens(self, name: str, token_ids: Ordered[int]) -> str | None:
        if len(token_ids) == 0:
            return f"{name} must hold at least one token, got none; give it some text"
        try:
            wrong = next((token for token in token_ids if not 0 <= int(token) < self.vocab_size), None)
        except (TypeError, ValueError):
            return f"{name} must hold whole numbers only; tokenize the text first"
        if wrong is not None:
            return (
                f"{name} must lie between 0 and {self.vocab_size - 1} (the model's vocabulary), got {shorten(wrong)}; "
                "use the tokenizer of this checkpoint"
            )
        return None

    def _refuse_length(self, request: Request) -> str | None:
        num_prompt_tokens, max_new_tokens = len(request.prompt_token_ids), request.sampling.max_new_tokens
        total = num_prompt_tokens + max_new_tokens
        found = f"{num_prompt_tokens} + {max_new_tokens} = {total}"
        if total > self.n_positions:
            return (
                f"prompt tokens + max_new_tokens must not exceed n_positions ({self.n_positions}), got {found}; "
                "truncate the prompt or lower max_new_tokens"
            )
        # The last new token is never fed back, so it needs no room.
        if total - 1 > self.cache_tokens:
            return (
                f"prompt tokens + max_new_tokens must fit the KV cache ({self.cache_tokens} tokens), got {found}; "
                "enlarge the cache (kv_cache_gb, or EngineConfig's kv_cache_bytes or num_blocks), truncate the prompt "
                "or lower max_new_tokens"
            )
        return None

    def _refuse_prompt(self, request: HeadRequest) -> str | None:
        num_prompt_tokens = len(request.prompt_token_ids)
        if num_prompt_tokens > self.n_positions:
            return (
                f"prompt tokens must not exceed n_positions ({self.n_positions}), got {num_prompt_tokens}; "
                "truncate the prompt"
            )
        if isinstance(request, SpanRequest) and not 0 <= request.first_token < num_prompt_tokens:
            return (
                f"first_token must be the place of one of the {num_prompt_tokens} prompt tokens, got "
                f"{request.first_token}"
            )
        if isinstance(request, ScoreRequest):
            return self._refuse_score(request.first_token, num_prompt_tokens)
        if isinstance(request, EmbedRequest) and request.layer is not None:
            return self._refuse_layer(request.layer)
        return None

    def _refuse_score(self, first_token: int, num_prompt_tokens: int) -> str | None:
        advice = "put the end-of-text token before the text to score its first token too"
        if num_prompt_tokens < 2:
            return f"prompt_token_ids must hold at least two tokens to be scored, got {num_prompt_tokens}; {advice}"
        if not 1 <= first_token < num_prompt_tokens:
            return (
                f"first_token must be the place of a prompt token with another before it (1 to "
                f"{num_prompt_tokens - 1}), got {first_token}; {advice}"
            )
        return None

    def _refuse_layer(self, layer: int) -> str | None:
        num_places = self.n_layer + 1
        if not -num_places <= layer < num_places:
            return (
                f"layer must lie between {-num_places} and {self.n_layer} (0 the embedding, {self.n_layer} the last "
                f"layer, negative from the end), got {layer}"
            )
        return None

    def _refuse_labels(self, request: LabelRequest) -> str | None:
        if not request.label_token_ids:
            return "label_token_ids must hold at least one label, got none"
        for index, label in enumerate(request.label_token_ids):
            problem = self._refuse_tokens(f"label_token_ids[{index}]", label)
            if problem is not None:
                return problem
        num_prompt_tokens, longest = len(request.prompt_token_ids), max(map(len, request.label_token_ids))
        if num_prompt_tokens + longest > self.n_positions:
            return (
                f"prompt tokens + the longest label's must not exceed n_positions ({self.n_positions}), got "
                f"{num_prompt_tokens} + {longest} = {num_prompt_tokens + longest}; truncate the prompt"
            )
        return None
