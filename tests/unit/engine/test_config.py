import pytest

from gptj_batch.engine.config import GIB, Bounds, EngineConfig
from gptj_batch.errors import ConfigError

GPTJ_6B = {"kv_bytes_per_token": 458_752, "n_positions": 2048}


def resolve(config: EngineConfig, *, device_type: str = "cpu", free_bytes: int = 64 * GIB, **shape: int) -> Bounds:
    return config.resolve(device_type=device_type, free_bytes=free_bytes, **{**GPTJ_6B, **shape})


def test_on_a_cpu_the_cache_takes_at_most_a_gibibyte() -> None:
    assert resolve(EngineConfig()) == Bounds(
        max_step_tokens=1024, min_running=32, max_running=256, block_size_tokens=16, num_blocks=GIB // (16 * 458_752)
    )


def test_on_a_small_host_the_cache_takes_a_quarter_of_what_is_free() -> None:
    assert resolve(EngineConfig(), free_bytes=GIB).num_blocks == GIB // 4 // (16 * 458_752)


def test_on_a_gpu_the_cache_takes_most_of_what_the_weights_left() -> None:
    bounds = resolve(EngineConfig(), device_type="cuda", free_bytes=60 * GIB)
    assert bounds.num_blocks == int(60 * GIB * 0.85) // (32 * 458_752)
    assert (bounds.max_step_tokens, bounds.min_running, bounds.max_running) == (8192, 256, 256)


def test_the_cache_is_no_larger_than_running_sequences_can_fill() -> None:
    bounds = resolve(EngineConfig(max_running=3), kv_bytes_per_token=16, n_positions=100)
    assert bounds.num_blocks == 3 * 7


def test_given_values_stand() -> None:
    config = EngineConfig(max_step_tokens=7, max_running=5, num_blocks=3, block_size_tokens=2)
    assert resolve(config) == Bounds(max_step_tokens=7, min_running=5, max_running=5, num_blocks=3, block_size_tokens=2)


def test_kv_cache_bytes_is_turned_into_blocks() -> None:
    assert resolve(EngineConfig(kv_cache_bytes=10_000, block_size_tokens=4), kv_bytes_per_token=100).num_blocks == 25


def test_a_cache_below_one_block_is_refused_with_the_size_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_bytes must hold at least one block of 16 tokens \(7340032"):
        resolve(EngineConfig(kv_cache_bytes=1000))


@pytest.mark.parametrize("name", ["max_step_tokens", "max_running", "kv_cache_bytes", "num_blocks"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_a_value_that_is_no_count_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a whole number of at least 1"):
        EngineConfig(**{name: value})  # type: ignore[arg-type]


def test_prefix_caching_is_on_unless_it_is_switched_off() -> None:
    assert resolve(EngineConfig()).prefix_caching
    assert not resolve(EngineConfig(prefix_caching=False)).prefix_caching
    with pytest.raises(ConfigError, match="prefix_caching must be True or False, got 1"):
        EngineConfig(prefix_caching=1)  # type: ignore[arg-type]


def test_the_cache_is_sized_in_one_way_only() -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        EngineConfig(kv_cache_bytes=1, num_blocks=1)
