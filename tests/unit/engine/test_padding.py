import pytest
import torch
from torch import Tensor

from gptj_batch.engine.padding import ATTENTION_STEPS_PER_OCTAVE, STEPS_PER_OCTAVE, encode, padded_size, project
from gptj_batch.model import GPTJConfig, GPTJForCausalLM


class Recorder:
    """An `Attend` that passes values through and notes how many tokens it was shown."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.seen.append(len(query))
        assert len(query) == len(key) == len(value)
        return value


@pytest.fixture(scope="module")
def model() -> GPTJForCausalLM:
    torch.manual_seed(0)
    return GPTJForCausalLM(
        GPTJConfig(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=2, rotary_dim=8)
    ).eval()


@pytest.mark.parametrize("steps", [STEPS_PER_OCTAVE, ATTENTION_STEPS_PER_OCTAVE])
def test_a_size_is_rounded_up_by_less_than_one_step_of_its_octave(steps: int) -> None:
    for size in range(1, 3000):
        assert size <= padded_size(size, steps) < size * (1 + 1 / steps) + 1
        assert padded_size(padded_size(size, steps), steps) == padded_size(size, steps)
        if size <= 2 * steps:
            assert padded_size(size, steps) == size


def test_a_thousand_sizes_become_about_a_hundred() -> None:
    assert len({padded_size(size) for size in range(1, 1025)}) < 120
    assert len({padded_size(size, ATTENTION_STEPS_PER_OCTAVE) for size in range(1, 129)}) < 30


@pytest.mark.parametrize("num_tokens", [1, 32, 33, 63])
@torch.inference_mode()
def test_padding_changes_no_tokens_result_and_attention_never_sees_it(model: GPTJForCausalLM, num_tokens: int) -> None:
    ids, positions = torch.arange(num_tokens) % 96, torch.arange(num_tokens)
    padded, plain = Recorder(), Recorder()
    mine = encode(model.transformer, ids, positions, padded)
    torch.testing.assert_close(mine, model.transformer.encode(ids, positions, plain), atol=1e-6, rtol=0)
    assert padded.seen == plain.seen == [num_tokens] * 2
    logits = project(model.lm_head, mine)
    assert logits.shape == (num_tokens, 96)
    torch.testing.assert_close(logits, model.lm_head(mine), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_an_odd_number_of_tokens_does_reach_the_model_padded(model: GPTJForCausalLM) -> None:
    sizes: list[int] = []
    handle = model.transformer.h[0].mlp.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    encode(model.transformer, torch.zeros(33, dtype=torch.int64), torch.arange(33), Recorder())
    handle.remove()
    assert sizes == [34]
