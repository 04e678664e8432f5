from typing import Any

import torch

from gptj_batch.backends.vllm_memory import MemoryPlan
from gptj_batch.engine.config import GIB
from gptj_batch.model import GPTJConfig, GPTJForCausalLM

GPTJ_6B: dict[str, Any] = {"vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28}


def test_the_weights_are_counted_as_the_model_has_them() -> None:
    config = {"vocab_size": 97, "n_positions": 48, "n_embd": 64, "n_layer": 3, "n_head": 2, "rotary_dim": 16}
    with torch.device("meta"):
        model = GPTJForCausalLM(GPTJConfig(**config))  # type: ignore[arg-type]
    number = sum(parameter.numel() for parameter in model.parameters())
    assert MemoryPlan.of(config, "float32", {}).weight_bytes == 4 * number


def test_gpt_j_in_fp16_fits_16_gb_with_its_whole_context() -> None:
    plan = MemoryPlan.of(GPTJ_6B, "float16", {})
    assert plan.kv_bytes_per_token == 458_752
    assert plan.least_bytes < 16e9
    assert plan.cache_tokens(int(16e9)) >= 2048


def test_less_of_the_gpu_or_a_longer_context_is_heeded() -> None:
    assert MemoryPlan.of(GPTJ_6B, "float16", {"gpu_memory_utilization": 0.7}).least_bytes > 16 * GIB
    short = MemoryPlan.of(GPTJ_6B, "float16", {"max_model_len": 512})
    assert short.context_tokens == 512 and short.least_bytes < MemoryPlan.of(GPTJ_6B, "float16", {}).least_bytes


def test_two_gpus_hold_half_each() -> None:
    one, two = (MemoryPlan.of(GPTJ_6B, "float16", {}, number) for number in (1, 2))
    assert two.weight_bytes == one.weight_bytes // 2 and two.kv_bytes_per_token == one.kv_bytes_per_token // 2


def test_it_says_so_in_one_line() -> None:
    text = str(MemoryPlan.of(GPTJ_6B, "float16", {}))
    assert "weights 11.3 GiB, KV cache 448 KiB a token" in text and "one context of 2,048 tokens" in text
