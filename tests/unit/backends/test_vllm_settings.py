from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptj_batch.backends.vllm_settings import FIXED, TABLE, Shape, VLLMSettings, check_engine_kwargs, engine_arguments
from gptj_batch.engine.config import GIB
from gptj_batch.errors import ConfigError

GPTJ_6B = Shape(n_positions=2048, n_layer=28, n_embd=4096)
ON_CUDA = VLLMSettings(model_path=Path("m"), head="causal-lm", dtype="float16", device="cuda")
ON_CPU = replace(ON_CUDA, dtype="float32", device="cpu")


def test_every_setting_has_its_place_among_vllms_arguments() -> None:
    settings = replace(ON_CUDA, max_step_tokens=512, max_running=64, kv_cache_gb=2.0, tensor_parallel=2)
    arguments = engine_arguments(settings, GPTJ_6B)
    assert set(TABLE.values()) <= set(arguments)
    expected = {"max_num_batched_tokens": 512, "max_num_seqs": 64, "kv_cache_memory_bytes": 2 * GIB}
    assert arguments | expected | {"tensor_parallel_size": 2, "dtype": "float16", "model": "m"} == arguments


def test_what_is_left_open_on_a_gpu_is_left_to_vllm() -> None:
    arguments = engine_arguments(ON_CUDA, GPTJ_6B)
    assert not {"max_num_batched_tokens", "max_num_seqs", "kv_cache_memory_bytes"} & set(arguments)
    assert arguments["max_model_len"] == 2048 and arguments["block_size"] == 16


def test_on_a_cpu_the_cache_is_bounded_and_its_blocks_are_larger() -> None:
    arguments = engine_arguments(ON_CPU, GPTJ_6B)
    assert arguments["kv_cache_memory_bytes"] == 2 * 2048 * 2 * 28 * 4096 * 4
    assert arguments["block_size"] == 32
    assert engine_arguments(ON_CPU, Shape(n_positions=64, n_layer=2, n_embd=64))["kv_cache_memory_bytes"] == GIB


def test_a_cache_smaller_than_a_context_bounds_the_context_and_leaves_vllm_its_block() -> None:
    block_bytes = 16 * GPTJ_6B.kv_bytes_per_token("float16")
    arguments = engine_arguments(replace(ON_CUDA, kv_cache_gb=10 * block_bytes / GIB), GPTJ_6B)
    assert arguments["max_model_len"] == 9 * 16


def test_a_cache_without_room_for_a_block_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"kv_cache_gb must hold at least two blocks of 16 tokens .* got 1048576 bytes"
    ):
        engine_arguments(replace(ON_CUDA, kv_cache_gb=1 / 1024), GPTJ_6B)


def test_no_more_sequences_run_than_a_step_has_tokens() -> None:
    assert engine_arguments(replace(ON_CUDA, max_step_tokens=16), GPTJ_6B)["max_num_seqs"] == 16


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"pooling": "last"}, ("pooling", "none")),
        ({"pooling": "mean", "head": "question-answering"}, ("pooling", "none")),
        ({"head": "sequence-classification"}, ("pooling", "classify")),
        ({"head": "question-answering"}, ("pooling", "none")),
    ],
)
def test_the_work_decides_whether_the_engine_generates_or_pools(
    changes: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    arguments = engine_arguments(replace(ON_CUDA, **changes), GPTJ_6B)
    assert (expected is None) == ("runner" not in arguments)
    assert expected is None or (arguments["runner"], arguments["convert"]) == expected


def test_a_mean_is_taken_in_one_step_and_without_a_prefix_cache() -> None:
    arguments = engine_arguments(replace(ON_CUDA, pooling="mean", max_step_tokens=100), GPTJ_6B)
    assert arguments["max_num_batched_tokens"] == 2048
    assert arguments["enable_prefix_caching"] is False


def test_arguments_of_vllms_own_are_passed_on() -> None:
    settings = replace(ON_CUDA, engine_kwargs={"gpu_memory_utilization": 0.5, "max_model_len": 128, "block_size": 64})
    arguments = engine_arguments(settings, GPTJ_6B)
    assert (arguments["gpu_memory_utilization"], arguments["max_model_len"], arguments["block_size"]) == (0.5, 128, 64)


def test_int8_is_the_native_engines() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.dtype: int8 is the native engine's own; .* set backend.kind to native"
    ):
        engine_arguments(replace(ON_CUDA, dtype="int8"), GPTJ_6B)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_num_seqs", "backend.engine_kwargs.max_num_seqs: set backend.max_running instead"),
        ("tokenizer", "cannot be set: token ids go in and come out"),
        ("gpu_memory_utilisation", "vLLM has no such argument; did you mean gpu_memory_utilization?"),
        ("zzz", "backend.engine_kwargs.zzz: vLLM has no such argument$"),
    ],
)
def test_other_arguments_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_engine_kwargs({name: 1}, {"gpu_memory_utilization", "max_model_len"})


def test_where_vllm_is_missing_only_ours_are_known() -> None:
    check_engine_kwargs({"zzz": 1}, ())
    for name in (*TABLE.values(), *FIXED):
        with pytest.raises(ConfigError):
            check_engine_kwargs({name: 1}, ())
