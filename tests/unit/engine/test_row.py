import pytest

from gptj_batch import ClassifyRequest, EmbedRequest, LabelRequest, ScoreRequest, SpanRequest
from gptj_batch.engine.row import Row
from gptj_batch.requests import HeadRequest

PROMPT = [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("request_", "num_tokens", "num_read"),
    [
        (LabelRequest(key="a", prompt_token_ids=PROMPT, label_token_ids=((1, 2), (1, 3), (4,))), 5, 2),
        (ClassifyRequest(key="a", prompt_token_ids=PROMPT), 4, 1),
        (SpanRequest(key="a", prompt_token_ids=PROMPT, first_token=1), 4, 3),
        (EmbedRequest(key="a", prompt_token_ids=PROMPT, pooling="mean"), 4, 4),
        (EmbedRequest(key="a", prompt_token_ids=PROMPT, pooling="last"), 4, 1),
        (ScoreRequest(key="a", prompt_token_ids=PROMPT, first_token=1), 3, 3),
        (ScoreRequest(key="a", prompt_token_ids=PROMPT, first_token=3), 3, 1),
    ],
)
def test_a_row_feeds_and_reads_what_its_request_needs(request_: HeadRequest, num_tokens: int, num_read: int) -> None:
    row = Row(0, request_)
    assert (row.num_tokens, row.num_read, row.num_prompt_tokens) == (num_tokens, num_read, 4)


def test_the_tokens_of_a_text_are_predicted_each_by_the_one_before() -> None:
    row = Row(0, ScoreRequest(key="a", prompt_token_ids=PROMPT, first_token=2))
    assert (row.context, row.first_read, row.targets) == ([5, 6, 7], 1, [[(0, 7)], [(1, 8)]])


@pytest.mark.parametrize(("layer", "expected"), [(None, None), (-1, None), (3, None), (0, 0), (2, 2), (-2, 2), (-4, 0)])
def test_a_layer_is_named_as_transformers_names_it(layer: int | None, expected: int | None) -> None:
    assert Row(0, EmbedRequest(key="a", prompt_token_ids=PROMPT, layer=layer)).num_layers(3) == expected
