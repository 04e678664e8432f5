"""Engine: requests in, results out, one step at a time."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Self

import torch

from gptj_batch.engine.beam_offers import Offer
from gptj_batch.engine.beams import Beams
from gptj_batch.engine.config import EngineConfig
from gptj_batch.engine.cpu_attention import padded_head_dim
from gptj_batch.engine.kv_cache import bytes_per_token, free_bytes
from gptj_batch.engine.limits import Limits
from gptj_batch.engine.out_of_memory import TOO_LARGE, is_out_of_memory
from gptj_batch.engine.prepare import prepare_body, prepare_rows, prepare_runner
from gptj_batch.engine.row import Row
from gptj_batch.engine.runner import Runner
from gptj_batch.engine.sampling import Choice
from gptj_batch.engine.scheduler import Scheduler, Step
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.single_pass import SinglePass
from gptj_batch.engine.stopping import RequestCodeError, finish_reason
from gptj_batch.errors import ConfigError
from gptj_batch.model import MODEL_CLASSES, GPTJForCausalLM, HeadModel
from gptj_batch.model_folder import Head
from gptj_batch.requests import AnyRequest, LabelRequest, Request
from gptj_batch.results import AnyResult, Failed, FinishReason, Generated, Labelled

Deliver = Callable[[AnyResult], None]


INT8: Final = "int8"
LOGGER = logging.getLogger(__name__)


class Engine:
    """Run many requests through one model at the same time.

    A model with a head of its own (classification, question answering) answers the requests of that head, each in one
    pass; only a causal language model gets a KV cache.

    It is not thread-safe: one thread calls it, as `gptj_batch.backends.native` does on behalf of many.
    """

    def __init__(
        self,
        model: HeadModel,
        config: EngineConfig | None = None,
        *,
        take_weights: bool = False,
        in_int8: bool = False,
    ) -> None:
        """Build an engine around `model`.

        take_weights: the model gives its weights up, to be held in a form that suits the device, which is faster, and
            cannot be used any more; otherwise they are used as they are, without copying them.
        in_int8: weights, and what they are multiplied with, in 8 bits; on a CPU, and only where the weights are taken.
        Raises ConfigError for a configuration that cannot work with the model.
        """
        config = config or EngineConfig()
        shape = model.config
        if config.device is not None and not _is_same_device(torch.device(config.device), model.device):
            raise ConfigError(f"device must be where the model is ({model.device}), got {config.device}")
        if not isinstance(model, GPTJForCausalLM):
            config = replace(config, num_blocks=1, kv_cache_bytes=None)  # which none is made of
        use_kernels = config.kernels == "auto"
        pads = use_kernels and model.device.type == "cpu"  # the kernels keep whole vectors of channels
        head_dim = padded_head_dim(shape.head_dim) if pads else shape.head_dim
        self.bounds = config.resolve(
            device_type=model.device.type,
            free_bytes=free_bytes(model.device),
            kv_bytes_per_token=bytes_per_token(shape.n_layer, shape.n_head, head_dim, model.dtype),
            n_positions=shape.n_positions,
        )
        self.model = model
        self.scheduler = Scheduler(self.bounds)
        self.beams = Beams(self.scheduler, shape.vocab_size, shape.eos_token_ids)
        assert take_weights or not in_int8, "8 bits are another form of the weights"
        self.dtype = INT8 if in_int8 else str(model.dtype).removeprefix("torch.")
        body = prepare_body(model, take_weights=take_weights, in_int8=in_int8)
        self.runner: Runner | None = None
        self.facts: dict[str, str] = {}  # about the ways that were taken on this device
        if isinstance(model, GPTJForCausalLM):
            self.runner, self.facts = prepare_runner(model, body, self.bounds, use_kernels=use_kernels)
        attention = prepare_rows(model, use_kernels=use_kernels)
        self.single_pass = SinglePass(model, body, attention, self.bounds.max_step_tokens)
        self.limits = Limits(
            vocab_size=shape.vocab_size,
            n_positions=shape.n_positions,
            cache_tokens=self.scheduler.pool.capacity_tokens,
            n_layer=shape.n_layer,
            head=next(head for head, kind in MODEL_CLASSES.items() if isinstance(model, kind)),
        )
        self._num_added = 0
        self._deliveries: dict[int, Deliver] = {}
        self._ready: list[AnyResult] = []

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        head: Head = "causal-lm",
        revision: str | None = None,
        dtype: str | torch.dtype | None = "bfloat16",
        config: EngineConfig | None = None,
    ) -> Self:
        """Load a checkpoint in the Hugging Face layout and build an engine around it.

        head: which of GPT-J's classes is read    dtype: None keeps the checkpoint's; "int8" is bfloat16
            with the products in 8 bits, on a CPU
        The device is config.device; None is the GPU where there is one.
        Raises CheckpointError for a folder that holds no GPT-J, ConfigError for a configuration that cannot work.
        """
        config = config or EngineConfig()
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        in_int8 = dtype == INT8
        if in_int8 and torch.device(device).type != "cpu":
            raise ConfigError(f"dtype int8 is for a CPU, and the device is {device}; use float16")
        model = MODEL_CLASSES[head].from_pretrained(
            path, revision=revision, dtype=torch.bfloat16 if in_int8 else dtype, device=device, allow_new_head=False
        )
        return cls(model, config, take_weights=True, in_int8=in_int8)

    @property
    def has_unfinished(self) -> bool:
        """Say whether `step` has anything left to do or to hand out."""
        return self.scheduler.has_unfinished or self.single_pass.has_unfinished or bool(self._ready)

    def refuse(self, request: AnyRequest) -> str | None:
        """Return why `request` can never run here, or None: the rule, the values found, what to do."""
        problem = self.limits.refuse(request)
        return self.beams.refuse(request) if problem is None and isinstance(request, Request) else problem

    def add(self, request: AnyRequest, deliver: Deliver | None = None) -> None:
        """Take a request in; a later `step` returns its result, or hands it to `deliver` if that is given.

        A request that can never run gets `Failed` in the same way.
        """
        uid = self._num_added
        self._num_added += 1
        if deliver is not None:
            self._deliveries[uid] = deliver
        problem = self.refuse(request)
        if problem is not None:
            self._hand_out(uid, Failed(key=request.key, error=problem))
        elif isinstance(request, Request):
            self.scheduler.add(Sequence(uid, request), num_sequences=request.sampling.num_beams)
        else:
            self.single_pass.add(Row(uid, request))

    def cancel(self, key: str) -> bool:
        """Drop every unfinished request of this key, freeing its memory at once; say whether there was one.

        `step` returns nothing for it; a `deliver` that was given with it gets `Failed`.
        """
        sequences = [sequence for sequence in self.scheduler if sequence.request.key == key]
        rows = [row for row in self.single_pass if row.request.key == key]
        for sequence in sequences:
            self.scheduler.release(sequence)
        for row in rows:
            self.single_pass.release(row)
        for uid in [*(sequence.uid for sequence in sequences), *(row.uid for row in rows)]:
            if uid in self._deliveries:
                self._hand_out(uid, Failed(key=key, error="cancelled before it was finished"))
        return bool(sequences or rows)

    def step(self) -> list[AnyResult]:
        """Do one step's work and return the results that it finished.

        Requests that need no generation are answered, as many as one pass holds; then the running sequences, and those
        that can be admitted, are fed one step further.
        """
        for row, result in self.single_pass.step():
            self._hand_out(row.uid, result)
        step = self.scheduler.schedule()
        if step.chunks:
            self._run(step)
        finished, self._ready = self._ready, []
        return finished

    def run(self, requests: Iterable[AnyRequest]) -> list[AnyResult]:
        """Run all `requests` to the end and return their results in the same order; keys need not differ."""
        requests = list(requests)
        results: dict[int, AnyResult] = {}
        for index, request in enumerate(requests):
            self.add(request, partial(results.__setitem__, index))
        others: list[AnyResult] = []  # finished on the way, but added by somebody else: for the next `step`
        while len(results) < len(requests):
            others += self.step()
        self._ready += others
        return [results[index] for index in range(len(requests))]

    def score_labels(self, requests: Iterable[LabelRequest]) -> list[Labelled | Failed]:
        """Return the log-likelihood of every request's labels, in the order of the requests."""
        results = self.run(requests)
        return [result for result in results if isinstance(result, Labelled | Failed)]

    def _run(self, step: Step) -> None:
        """Feed a step's tokens, and go on from what comes out; a step too large for the memory is taken back."""
        assert self.runner is not None, "the limits refuse what this model cannot generate"
        try:
            outcomes = self.runner.run(step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            outcomes = None
        if outcomes is None:  # behind the handler, whose error holds on to the step's tensors
            self._retreat(step)
            return
        self.scheduler.commit(step, {sequence for sequence, outcome in outcomes if _is_spoiled(outcome)})
        self._postprocess(outcomes, self.runner.eos_token_ids)

    def _retreat(self, step: Step) -> None:
        """Let the requests of a step that the memory could not hold be run in smaller ones; fail where that is none."""
        is_smaller = self.scheduler.retreat()
        self.bounds = self.scheduler.bounds
        LOGGER.warning("a step did not fit the memory; from now on one has %d tokens", self.bounds.max_step_tokens)
        for group in {} if is_smaller else dict.fromkeys(chunk.sequence.group for chunk in step.chunks):
            uid, key = group.sequences[0].uid, group.sequences[0].request.key
            for sequence in group.sequences.copy():
                self.scheduler.release(sequence)
            self._hand_out(uid, Failed(key=key, error=TOO_LARGE))

    def _postprocess(self, outcomes: list[tuple[Sequence, Choice | Offer]], eos_token_ids: tuple[int, ...]) -> None:
        """Append each sequence's next token, and let go of those that this finishes."""
        for sequence, choice in outcomes:
            # A stop condition may have cancelled any sequence, its own included.
            if not isinstance(choice, Choice) or not sequence.is_live:
                continue
            result = self._advance(sequence, choice, eos_token_ids)
            if result is not None and sequence.is_live:
                self.scheduler.release(sequence)
                self._hand_out(sequence.uid, result)
        offers = {sequence: offer for sequence, offer in outcomes if not isinstance(offer, Choice)}
        for uid, result in self.beams.advance(offers):
            self._hand_out(uid, result)

    def _advance(self, sequence: Sequence, choice: Choice, eos_token_ids: tuple[int, ...]) -> Generated | Failed | None:
        """Append a token; return the result if the sequence is done or has failed."""
        key = sequence.request.key
        if not choice.is_finite:
            return Failed(key=key, error="the model's logits are not finite; try a wider dtype (bfloat16, float32)")
        if choice.problem is not None:
            return Failed(key=key, error=choice.problem)
        sequence.append(choice.token_id)
        if choice.logprob is not None:
            sequence.logprobs.append(choice.logprob)
        try:
            reason = finish_reason(sequence, eos_token_ids)
        except RequestCodeError as error:
            return Failed(key=key, error=str(error))
        return None if reason is None else _generated(sequence, reason)

    def _hand_out(self, uid: int, result: AnyResult) -> None:
        deliver = self._deliveries.pop(uid, None)
        if deliver is None:
            self._ready.append(result)
        else:
            deliver(result)


def _is_same_device(wanted: torch.device, found: torch.device) -> bool:
    return wanted.type == found.type and wanted.index in (None, found.index)


def _is_spoiled(outcome: Choice | Offer) -> bool:
    """Say whether the logits were not finite, so that what is cached of the sequence is worth nothing."""
    return outcome is None or (isinstance(outcome, Choice) and not outcome.is_finite)


def _generated(sequence: Sequence, reason: FinishReason) -> Generated:
    request: Request = sequence.request
    return Generated(
        key=request.key,
        token_ids=tuple(sequence.generated_token_ids),
        finish_reason=reason,
        num_prompt_tokens=sequence.num_prompt_tokens,
        logprobs=tuple(sequence.logprobs) if request.sampling.logprobs else None,
    )
