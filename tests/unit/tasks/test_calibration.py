import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.errors import ConfigError
from gptj_batch.prompts.template import PromptTemplate
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.tasks.calibration import content_free_prompts, log_mean_probabilities, log_sum_exp


def prompts(source: str, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in content_free_prompts(PromptTemplate(source), tokenizer)]


def test_every_column_gives_way_to_each_text_without_content(tokenizer: Tokenizer) -> None:
    assert prompts("{{ title }}. {{ text }}\nTopic:", tokenizer) == [
        "N/A. N/A\nTopic:",
        "[MASK]. [MASK]\nTopic:",
        ". \nTopic:",
    ]


def test_examples_in_the_template_stay(tokenizer: Tokenizer) -> None:
    source = '{% for e in [{"text": "a", "topic": "W"}] %}{{ e.text }}:{{ e.topic }}\n{% endfor %}{{ text }}:'
    assert prompts(source, tokenizer) == ["a:W\nN/A:", "a:W\n[MASK]:", "a:W\n:"]


def test_a_prompt_of_no_tokens_is_left_out(tokenizer: Tokenizer) -> None:
    assert prompts("{{ text }}", tokenizer) == ["N/A", "[MASK]"]


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("Topic:", r"^task\.calibrate: .* task\.prompt uses no column; set it to none"),
        ("{{ meta.a }}", r'^task\.calibrate: .* cannot be rendered: "meta\.a" is missing .*Use columns of text'),
        ("{{ n + 1 }}", r"^task\.calibrate: .* cannot be rendered: task\.prompt, line 1: TypeError"),
    ],
)
def test_a_template_that_no_text_fits_is_refused(tokenizer: Tokenizer, source: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        prompts(source, tokenizer)


def test_the_mean_is_of_probabilities_and_not_of_their_logarithms() -> None:
    rows = [[math.log(0.8), math.log(0.2)], [7 + math.log(0.4), 7 + math.log(0.6)]]
    assert log_mean_probabilities(rows) == pytest.approx([math.log(0.6), math.log(0.4)])


def test_what_is_smaller_than_any_float_is_still_a_logarithm() -> None:
    assert log_mean_probabilities([[0.0, -2000.0], [0.0, -2000.0]]) == pytest.approx([0.0, -2000.0])


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=6), st.floats(-100, 100))
def test_a_sum_of_exponents_moves_with_what_all_have_in_common(values: list[float], common: float) -> None:
    assert log_sum_exp([value + common for value in values]) == pytest.approx(log_sum_exp(values) + common, abs=1e-9)
