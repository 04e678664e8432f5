"""What the tests of the engine share: a two-layer GPT-J from a seed, and requests over it."""

from collections.abc import Iterator

import pytest
import torch

from gptj_batch.model import GPTJConfig, GPTJForCausalLM

VOCAB_SIZE = 61


@pytest.fixture(scope="session")
def model() -> GPTJForCausalLM:
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=VOCAB_SIZE,
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=2,
        rotary_dim=8,
        eos_token_id=1,
        initializer_range=0.35,
    )
    return GPTJForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # Models this small lose more to waiting threads than they gain.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
