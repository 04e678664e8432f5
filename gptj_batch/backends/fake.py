"""FakeBackend: instant answers that are a pure function of each request, for tests and dry runs. No torch."""

import hashlib
import math
import threading
from array import array
from collections.abc import Sequence
from dataclasses import replace

from gptj_batch.backends.base import TokenCounts
from gptj_batch.backends.fake_constrained import follow
from gptj_batch.errors import BackendError
from gptj_batch.requests import (
    AnyRequest,
    ClassifyRequest,
    EmbedRequest,
    LabelRequest,
    Request,
    ScoreRequest,
    SpanRequest,
)
from gptj_batch.results import (
    AnyResult,
    Classified,
    Embedded,
    Failed,
    FinishReason,
    Generated,
    Labelled,
    Scored,
    SpanLogits,
)

DEFAULT_VOCAB_SIZE = 50257
DEFAULT_NUM_LABELS = 2
DEFAULT_WIDTH = 16


class FakeBackend:
    """Answer by hash: a request's result depends on its tokens and parameters, never on its key or company.

    Tokens lie below `vocab_size`, embeddings have `width` numbers. A greedy request's tokens do not depend on its seed,
    as with a model.
    """

    def __init__(
        self,
        vocab_size: int = DEFAULT_VOCAB_SIZE,
        num_labels: int = DEFAULT_NUM_LABELS,
        width: int = DEFAULT_WIDTH,
    ) -> None:
        self._vocab_size = vocab_size
        self._num_labels = num_labels
        self._width = width
        self._counts = TokenCounts()
        self._lock = threading.Lock()
        self._is_closed = False

    def run(self, requests: Sequence[AnyRequest]) -> list[AnyResult]:
        """Answer every request; see `Backend.run`."""
        if self._is_closed:
            raise BackendError("the backend has been closed; make a new one")
        results = [self._answer(request) for request in requests]
        with self._lock:
            for result in results:
                self._counts = self._counts.plus(result)
        return results

    def counts(self) -> TokenCounts:
        """Return the tokens done so far."""
        return self._counts

    def describe(self) -> dict[str, str | int]:
        """Return plain facts; see `Backend.describe`."""
        return {"kind": "fake", "device": "none", "dtype": "none", "vocab_size": self._vocab_size}

    def close(self) -> None:
        """Refuse later calls."""
        self._is_closed = True

    def _answer(self, request: AnyRequest) -> AnyResult:
        if len(request.prompt_token_ids) == 0:
            return Failed(key=request.key, error="prompt_token_ids must hold at least one token, got none")
        if isinstance(request, Request):
            return self._generate(request)
        if isinstance(request, LabelRequest):
            return self._label(request)
        if isinstance(request, ScoreRequest):
            return self._score(request)
        if isinstance(request, EmbedRequest):
            return self._embed(request)
        return self._span(request) if isinstance(request, SpanRequest) else self._classify(request)

    def _generate(self, request: Request) -> Generated | Failed:
        sampling = request.sampling
        if sampling.num_beams > 1:
            return self._search(request)
        return self._continue(
            request, "greedy" if sampling.temperature == 0.0 else f"{sampling.seed} {sampling.temperature}"
        )

    def _search(self, request: Request) -> Generated | Failed:
        """Return as many continuations as are asked for, best first, as beam search does."""
        beams = [self._continue(request, f"beam {number}") for number in range(request.sampling.num_return_sequences)]
        scored = [replace(beam, score=-1.0 - place) for place, beam in enumerate(beams) if isinstance(beam, Generated)]
        if len(scored) < len(beams):
            return next(beam for beam in beams if isinstance(beam, Failed))
        return replace(scored[0], alternatives=tuple(scored[1:]))

    def _continue(self, request: Request, seed: str) -> Generated | Failed:
        sampling = request.sampling
        if request.constraint is not None:
            return follow(request, lambda place: _hash(request.prompt_token_ids, f"{seed} {place}"))
        token_ids: list[int] = []
        logprobs: list[float] = []
        reason: FinishReason = "length"
        while len(token_ids) < sampling.max_new_tokens:
            number = _hash(request.prompt_token_ids, f"{seed} {len(token_ids)}")
            token_ids.append(number % self._vocab_size)
            logprobs.append(-(number % 1000) / 250)
            try:
                wants_stop = request.stop is not None and request.stop(token_ids)
            except Exception as error:  # noqa: BLE001 - the request's own code, as in the engine
                return Failed(key=request.key, error=f"the request's stop condition raised {type(error).__name__}")
            if (wants_stop or token_ids[-1] in sampling.stop_token_ids) and len(token_ids) >= sampling.min_new_tokens:
                reason = "stop"
                break
        return Generated(
            key=request.key,
            token_ids=tuple(token_ids),
            finish_reason=reason,
            num_prompt_tokens=len(request.prompt_token_ids),
            logprobs=tuple(logprobs) if sampling.logprobs else None,
        )

    def _label(self, request: LabelRequest) -> Labelled | Failed:
        if not request.label_token_ids or not all(request.label_token_ids):
            return Failed(key=request.key, error="label_token_ids must hold labels of at least one token each")
        logprobs = tuple(
            -(1 + _hash(request.prompt_token_ids, str(list(label))) % 4000) / 1000 * len(label)
            for label in request.label_token_ids
        )
        return Labelled(key=request.key, label_logprobs=logprobs, num_prompt_tokens=len(request.prompt_token_ids))

    def _classify(self, request: ClassifyRequest) -> Classified:
        text = _hash(request.prompt_token_ids, "text")
        logits = tuple(_logit(text, f"label {label}") for label in range(self._num_labels))
        return Classified(key=request.key, logits=logits, num_prompt_tokens=len(request.prompt_token_ids))

    def _span(self, request: SpanRequest) -> SpanLogits | Failed:
        text, num_tokens = _hash(request.prompt_token_ids, "text"), len(request.prompt_token_ids)
        places = range(request.first_token, num_tokens)
        if not places or request.first_token < 0:
            return Failed(key=request.key, error="first_token must be the place of one of the prompt tokens")
        return SpanLogits(
            key=request.key,
            start_logits=tuple(_logit(text, f"start {place}") for place in places),
            end_logits=tuple(_logit(text, f"end {place}") for place in places),
            num_prompt_tokens=num_tokens,
        )

    def _score(self, request: ScoreRequest) -> Scored | Failed:
        token_ids = request.prompt_token_ids
        if not 1 <= request.first_token < len(token_ids):
            return Failed(
                key=request.key, error="first_token must be the place of a prompt token, but not of the first"
            )
        logprobs = tuple(
            -(_hash(token_ids[: place + 1], "score") % 4000) / 1000
            for place in range(request.first_token, len(token_ids))
        )
        return Scored(key=request.key, token_logprobs=logprobs, num_prompt_tokens=len(token_ids))

    def _embed(self, request: EmbedRequest) -> Embedded:
        text = _hash(request.prompt_token_ids, f"{request.pooling} {request.layer}")
        vector = [_logit(text, f"channel {channel}") for channel in range(self._width)]
        length = math.hypot(*vector) if request.normalize and any(vector) else 1.0
        return Embedded(
            key=request.key,
            vector=array("f", [value / length for value in vector]),
            num_prompt_tokens=len(request.prompt_token_ids),
        )


def _logit(text: int, salt: str) -> float:
    return _hash([text], salt) % 1000 / 100 - 5


def _hash(token_ids: Sequence[int], salt: str) -> int:
    text = f"{','.join(map(str, token_ids))}|{salt}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
