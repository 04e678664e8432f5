"""VLLMBackend: vLLM's asynchronous engine, shared by all callers. vLLM is imported when one is made.

The requests of all calls stream into one `AsyncLLM`; nothing drains between two tables. The engine computes in a
process of its own. If that dies, every waiting and every later call raises BackendError; if this process dies, the
engine's kills itself (`vllm_worker`).
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError
from typing import Any, Final, TypeVar

from gptj_batch.backends.base import TokenCounts
from gptj_batch.backends.vllm_install import installed
from gptj_batch.backends.vllm_limits import NATIVE, refuse
from gptj_batch.backends.vllm_process import set_environment
from gptj_batch.backends.vllm_settings import Shape, VLLMSettings, engine_arguments
from gptj_batch.backends.vllm_start import start
from gptj_batch.engine.limits import Limits
from gptj_batch.engine.stopping import RequestCodeError
from gptj_batch.errors import BackendError, ConfigError
from gptj_batch.model.config import GPTJConfig
from gptj_batch.model_folder import read_config
from gptj_batch.requests import AnyRequest, EmbedRequest, Request
from gptj_batch.results import AnyResult, Failed

T = TypeVar("T")
CLOSED: Final = "the backend has been closed; make a new one"


class VLLMBackend:
    """Answer by vLLM; see the module."""

    def __init__(self, settings: VLLMSettings) -> None:
        """Start the engine and wait until it is ready.

        Raises ConfigError for settings that cannot work, BackendError where the engine does not start.
        """
        values = read_config(settings.model_path)
        model = GPTJConfig.from_dict(values)
        shape = Shape(n_positions=model.n_positions, n_layer=model.n_layer, n_embd=model.n_embd)
        arguments = engine_arguments(settings, shape)
        set_environment(
            on_cpu=settings.device == "cpu", num_threads=settings.num_threads, is_split=settings.tensor_parallel > 1
        )
        self._settings = settings
        self._counts = TokenCounts()
        self._is_closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gptj-batch-vllm", daemon=True)
        self._thread.start()
        try:
            self._engine = self._wait_for(start(settings, arguments))
        except BaseException:
            self._stop_loop()
            raise
        from gptj_batch.backends.vllm_answers import Answers

        if settings.holds_texts:
            self._check_end(model.eos_token_ids)
        self._answers = Answers(self._engine, model.eos_token_ids)
        cache = self._engine.vllm_config.cache_config
        self._context_tokens = int(self._engine.model_config.max_model_len)
        self._n_layer = model.n_layer
        self._facts = {
            "num_blocks": int(cache.num_gpu_blocks or 0),
            "block_size_tokens": int(cache.block_size),
            "max_step_tokens": int(self._engine.scheduler_config.max_num_batched_tokens),
            "max_running": int(self._engine.scheduler_config.max_num_seqs),
            "prefix_caching": bool(cache.enable_prefix_caching),
        }
        self._limits = Limits(
            vocab_size=model.vocab_size,
            n_positions=min(self._context_tokens, model.n_positions),
            cache_tokens=self._context_tokens,
            head=settings.head,
            n_layer=model.n_layer,
        )

    def run(self, requests: Sequence[AnyRequest]) -> list[AnyResult]:
        """Run the requests together with those of other calls; see `Backend.run`."""
        if self._is_closed:
            raise BackendError(CLOSED)
        return self._wait_for(self._answer_all(list(requests)))

    def counts(self) -> TokenCounts:
        """Return the tokens done so far."""
        return self._counts

    @property
    def num_steps(self) -> int:
        """Return a number that grows while the engine works: the tokens of finished requests and of running ones."""
        states = list(self._engine.output_processor.request_states.values())
        running = sum(len(state.detokenizer.token_ids) for state in states if state.detokenizer is not None)
        return self._counts.num_prompt_tokens + self._counts.num_generated_tokens + running

    @property
    def process_ids(self) -> list[int]:
        """Return the processes of the engine that are children of this one."""
        return [process.pid for process in self._engine.engine_core.resources.engine_manager.processes]

    def describe(self) -> dict[str, str | int]:
        """Return plain facts; see `Backend.describe`."""
        settings = self._settings
        return {
            "kind": "vllm",
            "vllm": installed().vllm or "",
            "device": settings.device,
            "dtype": settings.dtype,
            "tensor_parallel": settings.tensor_parallel,
            "max_context_tokens": self._context_tokens,
            **self._facts,
        }

    def close(self) -> None:
        """Stop the engine and its process; calls that still wait raise BackendError."""
        if self._is_closed:
            return
        self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
        self._stop_loop()

    async def _answer_all(self, requests: list[AnyRequest]) -> list[AnyResult]:
        return list(await asyncio.gather(*map(self._answer, requests)))

    async def _answer(self, request: AnyRequest) -> AnyResult:
        """Return a request's result; whatever is wrong with it alone is its own failure."""
        if problem := self._refuse(request):
            return Failed(key=request.key, error=problem)
        try:
            result = await self._answers.answer(request)
        except RequestCodeError as error:
            return Failed(key=request.key, error=str(error))
        except Exception as error:
            if self._engine.errored:
                raise BackendError("vLLM's engine has died; its own log says why; start a new one") from error
            # Its message might quote the record.
            return Failed(key=request.key, error=f"vLLM could not do the request ({_kinds(error)})")
        self._counts = self._counts.plus(result)
        return result

    def _check_end(self, eos_token_ids: tuple[int, ...]) -> None:
        """Raise ConfigError where vLLM would end a text that is held to a grammar by another token than the model's."""
        end_id = getattr(self._engine.get_tokenizer(), "eos_token_id", None)
        if (end_id,) != eos_token_ids:
            self.close()
            raise ConfigError(
                f"model.path: the tokenizer's end of text is {end_id} and config.json's is "
                f"{', '.join(map(str, eos_token_ids)) or 'none'} (eos_token_id); vLLM can hold texts to choices, regex "
                f"or json_schema only where they are one and the same; make them so, or {NATIVE}"
            )

    def _refuse(self, request: AnyRequest) -> str | None:
        problem = self._limits.refuse(request) or refuse(request, self._n_layer)
        if problem is None and isinstance(request, Request) and request.constraint and not self._settings.holds_texts:
            return "the engine was started without a tokenizer, which vLLM needs to hold texts to a grammar"
        if problem is None and isinstance(request, EmbedRequest) != (self._settings.work == "embed"):
            return "vLLM either embeds or generates: start the backend with the pooling of the task embed, or without"
        if problem is None and isinstance(request, EmbedRequest) and request.pooling != self._settings.pooling:
            return f"the engine was started for pooling {self._settings.pooling}, got {request.pooling}"
        return problem

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the engine's thread and wait for it. Raises BackendError where the backend is closed."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except (CancelledError, asyncio.CancelledError):
            raise BackendError(CLOSED) from None
        except KeyboardInterrupt:
            future.cancel()
            raise

    async def _shut_down(self) -> None:
        waiting = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        self._engine.shutdown()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _kinds(error: BaseException) -> str:
    """Return the class of an error and of what caused it."""
    cause = error.__cause__
    return type(error).__name__ if cause is None else f"{type(error).__name__} from {type(cause).__name__}"
