import torch

from gptj_batch.engine.prefix_groups import make_key
from gptj_batch.engine.shared_prefix import PrefixStore, SharedPrefix

BYTES_PER_TOKEN = 2 * 2 * 4 * 4  # a key and a value of 2 heads with 4 channels each, in float32


def computed(first: int, num_tokens: int) -> SharedPrefix:
    token_ids = list(range(first, first + num_tokens))
    prefix = SharedPrefix(make_key(token_ids), token_ids)
    prefix.layers.append((torch.zeros(2, num_tokens, 4), torch.zeros(2, num_tokens, 4)))
    return prefix


def test_what_was_used_longest_ago_goes_first_and_loses_its_memory() -> None:
    store = PrefixStore(max_bytes=30 * BYTES_PER_TOKEN, bytes_per_token=BYTES_PER_TOKEN)
    first, second, third = (computed(number, 10) for number in range(3))
    for prefix in (first, second, third, first, computed(9, 10)):
        store.use(prefix)
    assert [prefix.token_ids[0] for prefix in store] == [2, 0, 9]
    assert second.layers == [] and len(first.layers) == 1
    assert store.num_bytes == 30 * BYTES_PER_TOKEN


def test_a_prefix_that_would_not_fit_alone_is_known_beforehand() -> None:
    store = PrefixStore(max_bytes=10 * BYTES_PER_TOKEN, bytes_per_token=BYTES_PER_TOKEN)
    assert store.can_hold(computed(0, 10)) and not store.can_hold(computed(0, 11))


def test_one_computed_twice_is_held_once() -> None:
    store = PrefixStore(max_bytes=100 * BYTES_PER_TOKEN, bytes_per_token=BYTES_PER_TOKEN)
    before, again = computed(0, 10), computed(0, 10)
    store.use(before)
    store.use(again)
    assert list(store) == [again] and before.layers == []
