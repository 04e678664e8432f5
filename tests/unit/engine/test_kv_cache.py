import pytest
import torch

from gptj_batch.engine.block_tables import Copy
from gptj_batch.engine.kv_cache import COPIES_AT_ONCE, KVCache, bytes_per_token, free_bytes


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


def test_a_copy_brings_the_first_tokens_and_clears_the_rest(cache: KVCache) -> None:
    cache.clear(torch.arange(5))
    slots = cache.token_slots(torch.tensor([2] * 4), torch.arange(4))
    key, value = torch.randn(4, 3, 8), torch.randn(4, 3, 8)
    value[3] = torch.inf
    cache.write(1, slots, key, value)
    cache.write(1, cache.token_slots(torch.tensor([4]), torch.tensor([3])), key[:1], torch.full((1, 3, 8), torch.nan))
    cache.copy([Copy(2, 4, 3), Copy(2, 0, 1)])
    keys, values = (x.view(2, 3, 4, 8) for x in cache.read(1, cache.table_pages(torch.tensor([[4], [0]]))))
    assert torch.equal(keys[0, :, :3], key[:3].transpose(0, 1))
    assert torch.equal(values[0, :, :3], value[:3].transpose(0, 1))
    assert torch.equal(values[1, :, :1], value[:1].transpose(0, 1))
    assert values[0, :, 3:].eq(0).all()
    assert values[1, :, 1:].eq(0).all()
    assert cache.read(0, cache.table_pages(torch.arange(5)[None]))[1].eq(0).all()


def test_many_copies_are_made_a_few_at_a_time() -> None:
    cache = KVCache(
        num_layers=1,
        num_blocks=2 * COPIES_AT_ONCE + 3,
        num_heads=1,
        block_size_tokens=1,
        head_dim=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    ones = torch.ones(1, 1, 8)
    cache.clear(torch.arange(2 * COPIES_AT_ONCE + 3))
    cache.write(0, cache.token_slots(torch.tensor([0]), torch.tensor([0])), ones, ones)
    cache.copy([Copy(0, block, 1) for block in range(1, 2 * COPIES_AT_ONCE + 2)])
    values = cache.read(0, torch.arange(2 * COPIES_AT_ONCE + 3))[1]
    assert values[:-1].eq(1).all()
    assert values[-1].eq(0).all()


def test_a_token_of_gptj_6b_takes_458752_bytes() -> None:
    assert bytes_per_token(28, 16, 256, torch.float16) == 458_752


def test_the_host_has_some_memory_left() -> None:
    assert 0 < free_bytes(torch.device("cpu")) < 2**50
