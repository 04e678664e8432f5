import sys
from pathlib import Path

import pytest
import torch

from gptj_batch.engine.block_tables import Copy
from gptj_batch.engine.kv_cache import COPIES_AT_ONCE, KVCache, bytes_per_token, free_bytes


def make_cache(num_blocks: int = 5, dtype: torch.dtype = torch.float32) -> KVCache:
    cache = KVCache(
        num_layers=2,
        num_blocks=num_blocks,
        num_heads=3,
        block_size_tokens=4,
        head_dim=8,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    cache.keys.normal_()
    cache.values.normal_()
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keys_and_values_are_separate_memory_of_all_layers_head_by_head(dtype: torch.dtype) -> None:
    cache = make_cache(dtype=dtype)
    assert cache.keys.shape == cache.values.shape == (2, 5, 3, 4, 8)
    assert cache.keys.dtype == cache.values.dtype == dtype
    assert cache.keys.is_contiguous() and cache.values.is_contiguous()
    before = cache.keys.clone()
    cache.values.fill_(7.0)
    assert torch.equal(cache.keys, before)


def test_clearing_forgets_the_values_of_the_blocks_named_and_of_no_other() -> None:
    cache = make_cache()
    cache.values[:, [1, 2, 3]] = torch.inf
    cache.clear([2])
    assert cache.values[:, 2].eq(0).all()
    assert cache.values[:, [1, 3]].isinf().all()
    before = cache.values.clone()
    cache.clear([])
    assert torch.equal(cache.values, before)


def test_a_copy_brings_whole_blocks_in_all_layers_and_changes_no_other() -> None:
    cache = make_cache()
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.copy([Copy(2, 4, 3), Copy(2, 0, 1)])
    for found, before in ((cache.keys, keys), (cache.values, values)):
        assert torch.equal(found[:, 4], before[:, 2]) and torch.equal(found[:, 0], before[:, 2])
        assert torch.equal(found[:, 1:4], before[:, 1:4])


def test_what_stands_behind_the_tokens_that_were_copied_is_cleared() -> None:
    cache = make_cache()
    before = cache.values.clone()
    copies = [Copy(2, 4, 3), Copy(2, 0, 1)]
    cache.clear_behind(copies)
    assert torch.equal(cache.values[:, 4, :, :3], before[:, 4, :, :3])
    assert cache.values[:, 4, :, 3:].eq(0).all()
    assert torch.equal(cache.values[:, 0, :, :1], before[:, 0, :, :1])
    assert cache.values[:, 0, :, 1:].eq(0).all()
    assert torch.equal(cache.values[:, 1:4], before[:, 1:4])


def test_many_copies_are_all_made() -> None:
    cache = make_cache(num_blocks=2 * COPIES_AT_ONCE + 3)
    last = cache.keys[:, -1].clone()
    cache.copy([Copy(0, block, 1) for block in range(1, 2 * COPIES_AT_ONCE + 2)])
    assert cache.keys[:, 1:-1].eq(cache.keys[:, :1]).all()
    assert torch.equal(cache.keys[:, -1], last)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_private_so_that_it_can_be_had_in_large_pages() -> None:
    address = make_cache().keys.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < last:
            assert line.split()[1] == "rw-p"


def test_a_token_of_gptj_6b_takes_458752_bytes() -> None:
    assert bytes_per_token(28, 16, 256, torch.float16) == 458_752


def test_the_host_has_some_memory_left() -> None:
    assert 0 < free_bytes(torch.device("cpu")) < 2**50
