import torch

from gptj_batch.model import DynamicCache


def filled() -> DynamicCache:
    cache = DynamicCache()
    for layer in range(2):
        keys = torch.arange(12.0).view(2, 1, 6, 1) + layer
        cache.update(keys, -keys, layer)
    return cache


def test_a_cache_grows_layer_by_layer_and_token_by_token() -> None:
    cache = DynamicCache()
    assert (len(cache), cache.get_seq_length()) == (0, 0)
    first, second = torch.randn(2, 2, 1, 3, 4), torch.randn(2, 2, 1, 1, 4)
    cache.update(*first, 0)
    keys, values = cache.update(*second, 0)
    assert torch.equal(keys, torch.cat((first[0], second[0]), dim=2))
    assert torch.equal(values, torch.cat((first[1], second[1]), dim=2))
    assert (len(cache), cache.get_seq_length()) == (1, 4)


def test_a_layer_is_read_by_name_or_as_a_pair() -> None:
    cache = filled()
    keys, values = cache[1]
    assert keys is cache.layers[1].keys
    assert values is cache.layers[1].values
    assert [pair[0][0, 0, 0, 0].item() for pair in cache] == [0.0, 1.0]


def test_cropping_forgets_the_end() -> None:
    cache = filled()
    cache.crop(4)
    assert cache.get_seq_length() == 4
    cache.crop(-1)
    assert cache[0].keys.flatten().tolist() == [0, 1, 2, 6, 7, 8]


def test_rows_are_chosen_and_repeated() -> None:
    cache = filled()
    cache.batch_select_indices(torch.tensor([1]))
    assert cache[1].values[:, 0, 0, 0].tolist() == [-7]
    cache = filled()
    cache.batch_repeat_interleave(2)
    assert cache[0].keys[:, 0, 0, 0].tolist() == [0, 0, 6, 6]
