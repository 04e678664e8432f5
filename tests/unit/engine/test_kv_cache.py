import pytest
import torch

from gptj_batch.engine.kv_cache import KVCache, bytes_per_token, free_bytes


@pytest.fixture
def cache() -> KVCache:
    return KVCache(
        num_layers=2,
        num_blocks=5,
        num_heads=3,
        block_size_tokens=4,
        head_dim=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_what_is_written_by_token_is_read_by_page(cache: KVCache) -> None:
    table = [3, 1]
    key, value = torch.randn(6, 3, 8), torch.randn(6, 3, 8)
    blocks = torch.tensor([table[position // 4] for position in range(6)])
    cache.write(1, cache.token_slots(blocks, torch.arange(6) % 4), key, value)
    keys, values = cache.read(1, cache.table_pages(torch.tensor([table])))
    assert torch.equal(keys.view(3, 8, 8)[:, :6], key.transpose(0, 1))
    assert torch.equal(values.view(3, 8, 8)[:, :6], value.transpose(0, 1))


def test_rows_and_layers_do_not_touch_each_other(cache: KVCache) -> None:
    cache.clear(torch.arange(5))
    cache.write(0, cache.token_slots(torch.tensor([2]), torch.tensor([1])), torch.ones(1, 3, 8), torch.ones(1, 3, 8))
    everything = cache.table_pages(torch.arange(5)[None])
    assert cache.read(0, everything)[1].sum() == 3 * 8
    assert cache.read(1, everything)[1].sum() == 0


def test_clearing_forgets_values_that_are_not_finite(cache: KVCache) -> None:
    slots = cache.token_slots(torch.tensor([2, 3]), torch.tensor([0, 0]))
    cache.write(0, slots, torch.ones(2, 3, 8), torch.full((2, 3, 8), torch.inf))
    cache.clear(torch.tensor([2]))
    assert cache.read(0, cache.table_pages(torch.tensor([[2]])))[1].isfinite().all()
    assert cache.read(0, cache.table_pages(torch.tensor([[3]])))[1].isinf().any()


def test_a_token_of_gptj_6b_takes_458752_bytes() -> None:
    assert bytes_per_token(28, 16, 256, torch.float16) == 458_752


def test_the_host_has_some_memory_left() -> None:
    assert 0 < free_bytes(torch.device("cpu")) < 2**50
