"""Answers: each of our requests in vLLM's words, and what comes back in ours. Token ids go in and come out."""

import asyncio
import math
from array import array
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any, Final, cast

from vllm import PoolingParams
from vllm import SamplingParams as TheirSampling
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, RequestOutputKind, StructuredOutputsParams

from gptj_batch.engine.stopping import ending, stop_token_ids
from gptj_batch.requests import (
    AnyRequest,
    ClassifyRequest,
    Constraint,
    Described,
    EmbedRequest,
    LabelRequest,
    Request,
    SamplingParams,
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

FINISHED: Final = ("stop", "length")


class Answers:
    """Ask an `AsyncLLM`; every method is a coroutine of its loop, and any number of them may wait at once."""

    def __init__(self, engine: Any, eos_token_ids: tuple[int, ...]) -> None:
        self._engine = engine
        self._eos_token_ids = eos_token_ids
        self._numbers = count()

    async def answer(self, request: AnyRequest) -> AnyResult:
        """Return the result of a request that is within vLLM's limits."""
        match request:
            case Request():
                return await self._generate(request)
            case LabelRequest():
                return await self._label(request)
            case ScoreRequest():
                return await self._score(request)
            case ClassifyRequest():
                return await self._classify(request)
            case SpanRequest():
                return await self._spans(request)
            case EmbedRequest():
                return await self._embed(request)

    async def _generate(self, request: Request) -> AnyResult:
        """Continue a prompt.

        Its stop condition and its constraint are ours and asked here after every token; what runs on is cut off.
        """
        params = sampling_params(request.sampling, self._eos_token_ids)
        ends = request.stop is not None or request.constraint is not None
        state = None
        if request.stop is not None:
            params.output_kind = RequestOutputKind.DELTA
        if request.constraint is not None:
            params.structured_outputs = structured_outputs(request.constraint)
            state = request.constraint.start()
        token_ids: list[int] = []
        logprobs: list[float] = []
        reason: str | None = None
        async with aclosing(self._stream(request.prompt_token_ids, params)) as outputs:
            async for output in outputs:
                (new,) = output.outputs
                for place, token in enumerate(new.token_ids):
                    token_ids.append(token)
                    if request.sampling.logprobs:
                        logprobs.append(new.logprobs[place][token].logprob)
                    if ends and (reason := ending(request, token_ids, state, self._eos_token_ids)):
                        break
                reason = reason or new.finish_reason
                if reason is not None:
                    break
        if reason not in FINISHED:
            return Failed(key=request.key, error=f"vLLM ended the request early (finish_reason {reason})")
        if not _are_finite(logprobs):
            return _not_finite(request, "log-probabilities")
        return Generated(
            key=request.key,
            token_ids=tuple(token_ids),
            finish_reason=cast(FinishReason, reason),
            num_prompt_tokens=len(request.prompt_token_ids),
            logprobs=tuple(logprobs) if request.sampling.logprobs else None,
        )

    async def _label(self, request: LabelRequest) -> AnyResult:
        """Score labels token by token: one request for every beginning of a label, its next tokens' probabilities read.

        A label of one token so takes no more than the prompt's own request, and all but the first find the prompt in
        the prefix cache. vLLM's prompt_logprobs would compute every prompt as often as it has labels.
        """
        tree = beginnings(request.label_token_ids)
        asked = [
            (members, list(tokens), [*request.prompt_token_ids, *beginning])
            for beginning, members in tree.items()
            for tokens in _chunks(list(members))
        ]
        answers = await asyncio.gather(*(self._next_logprobs(prompt, tokens) for _, tokens, prompt in asked))
        scores = [0.0] * len(request.label_token_ids)
        for (members, _, _), logprobs in zip(asked, answers, strict=True):
            for token, logprob in logprobs.items():
                for label in members[token]:
                    scores[label] += logprob
        if not _are_finite(scores):
            return _not_finite(request, "scores for the labels")
        return Labelled(key=request.key, label_logprobs=tuple(scores), num_prompt_tokens=len(request.prompt_token_ids))

    async def _next_logprobs(self, prompt: Sequence[int], tokens: list[int]) -> dict[int, float]:
        """Return the log-probability of each of these tokens behind a prompt."""
        params = TheirSampling(temperature=0.0, max_tokens=1, logprob_token_ids=tokens, **_QUIET)
        output = await self._final(prompt, params)
        found = output.outputs[0].logprobs[0]
        return {token: found[token].logprob for token in tokens}

    async def _score(self, request: ScoreRequest) -> AnyResult:
        """Read the tokens' probabilities where the prompt is read; the last one's as that of a next token.

        So a text as long as the context fits, of which vLLM's prompts are one token short.
        """
        *prompt, last = request.prompt_token_ids
        params = TheirSampling(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, logprob_token_ids=[int(last)], **_QUIET
        )
        output = await self._final(prompt, params)
        places = range(request.first_token, len(prompt))
        logprobs = [output.prompt_logprobs[place][prompt[place]].logprob for place in places]
        logprobs.append(output.outputs[0].logprobs[0][int(last)].logprob)
        if not _are_finite(logprobs):
            return _not_finite(request, "log-likelihoods")
        return Scored(key=request.key, token_logprobs=tuple(logprobs), num_prompt_tokens=len(prompt) + 1)

    async def _classify(self, request: ClassifyRequest) -> AnyResult:
        logits = await self._pooled(request, PoolingParams(task="classify", use_activation=False))
        if not _are_finite(logits):
            return _not_finite(request, "logits")
        return Classified(key=request.key, logits=tuple(logits), num_prompt_tokens=len(request.prompt_token_ids))

    async def _spans(self, request: SpanRequest) -> AnyResult:
        pairs = await self._pooled(request, PoolingParams(task="token_classify", use_activation=False))
        starts, ends = zip(*pairs[request.first_token :], strict=True)
        if not _are_finite([*starts, *ends]):
            return _not_finite(request, "logits")
        return SpanLogits(
            key=request.key,
            start_logits=starts,
            end_logits=ends,
            num_prompt_tokens=len(request.prompt_token_ids),
        )

    async def _embed(self, request: EmbedRequest) -> AnyResult:
        vector = await self._pooled(request, PoolingParams(task="embed", use_activation=request.normalize))
        if not _are_finite(vector):
            return _not_finite(request, "hidden states")
        return Embedded(key=request.key, vector=array("f", vector), num_prompt_tokens=len(request.prompt_token_ids))

    async def _pooled(self, request: AnyRequest, params: Any) -> Any:
        """Return what a pooling engine makes of a prompt, as nested lists of floats."""
        prompt = _prompt(request.prompt_token_ids)
        async for output in self._engine.encode(prompt, params, self._new_id()):
            last = output
        return last.outputs.data.float().tolist()

    async def _final(self, prompt: Sequence[int], params: Any) -> Any:
        """Return the one output of a request that does not stream."""
        async for output in self._stream(prompt, params):
            last = output
        return last

    def _stream(self, prompt: Sequence[int], params: Any) -> AsyncGenerator[Any, None]:
        outputs: AsyncGenerator[Any, None] = self._engine.generate(_prompt(prompt), params, self._new_id())
        return outputs

    def _new_id(self) -> str:
        return str(next(self._numbers))


# Our tokenizer makes the text; a whole answer at once is what is wanted, unless a stop condition must see every token.
_QUIET: Final[dict[str, Any]] = {
    "detokenize": False,
    "output_kind": RequestOutputKind.FINAL_ONLY,
    "ignore_eos": True,
    "skip_clone": True,  # made for one request
}


def sampling_params(ours: SamplingParams, eos_token_ids: tuple[int, ...]) -> Any:
    """Return our parameters in vLLM's words.

    The end-of-text tokens are given as stop tokens: vLLM would take its own from a tokenizer, and has none.
    """
    return TheirSampling(
        max_tokens=ours.max_new_tokens,
        min_tokens=ours.min_new_tokens,
        temperature=ours.temperature,
        top_k=ours.top_k,
        top_p=ours.top_p,
        min_p=ours.min_p,
        repetition_penalty=ours.repetition_penalty,
        seed=ours.seed,
        stop_token_ids=list(stop_token_ids(ours, eos_token_ids)),
        logprobs=0 if ours.logprobs else None,
        **_QUIET,
    )


def structured_outputs(constraint: Constraint) -> Any:
    """Return a constraint in vLLM's words; both give the same grammar to llguidance."""
    assert isinstance(constraint, Described), "vllm_limits refuses others"
    language = constraint.language
    if language.regex is not None:
        return StructuredOutputsParams(regex=language.regex)
    return StructuredOutputsParams(json=language.json_schema)


def beginnings(labels: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """Return, for every beginning of a label, the tokens that follow it and the labels that go on with each."""
    tree: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for number, label in enumerate(labels):
        for place, token in enumerate(label):
            tree.setdefault(label[:place], {}).setdefault(int(token), []).append(number)
    return tree


def _chunks(tokens: list[int]) -> list[list[int]]:
    """Return the tokens in lists of as many as vLLM looks up at once."""
    return [tokens[first : first + MAX_LOGPROB_TOKEN_IDS] for first in range(0, len(tokens), MAX_LOGPROB_TOKEN_IDS)]


def _prompt(token_ids: Sequence[int]) -> dict[str, Any]:
    """Return a prompt that vLLM need not prepare any more."""
    return {"type": "token", "prompt_token_ids": [int(token) for token in token_ids]}


def _are_finite(values: Iterable[float]) -> bool:
    return all(map(math.isfinite, values))


def _not_finite(request: AnyRequest, what: str) -> Failed:
    return Failed(key=request.key, error=f"the model's {what} are not finite; try a wider dtype (float32)")
