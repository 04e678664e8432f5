import pytest

from gptj_batch.engine.padding import ATTENTION_STEPS_PER_OCTAVE, STEPS_PER_OCTAVE, padded_size


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
