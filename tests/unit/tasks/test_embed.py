from array import array
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import EmbedRequest
from gptj_batch.results import Embedded
from gptj_batch.tasks.base import Deduplicated, Encoded
from gptj_batch.tasks.embed import EmbedSettings, EmbedTask


def task(width: int = 3, num_layers: int = 2, **settings: Any) -> EmbedTask:
    return EmbedTask(
        EmbedSettings.model_validate({"kind": "embed", "text": "{{ text }}", **settings}), width, num_layers
    )


def test_a_row_is_one_request_of_the_layer_and_pooling_asked_for(tokenizer: Tokenizer) -> None:
    plain = task().request_maker(tokenizer).requests("k", [1, 2])
    assert plain == [EmbedRequest(key="k", prompt_token_ids=[1, 2], pooling="mean", layer=None, normalize=False)]
    settings: dict[str, Any] = {"pooling": "last", "layer": -2, "normalize": True}
    asked = task(**settings).request_maker(tokenizer).requests("k", [1, 2])
    assert asked == [EmbedRequest(key="k", prompt_token_ids=[1, 2], **settings)]


def test_an_embedding_is_a_list_of_fixed_size_of_the_very_numbers(tokenizer: Tokenizer) -> None:
    made = task()
    vector = array("f", [0.1, -2.5, 3e-20])
    raw = pa.array([made.pack([Embedded(key="k", vector=vector, num_prompt_tokens=2)]), None], type=made.raw_type)
    (embedding,) = made.columns(raw.to_pylist(), [None, None], tokenizer)
    assert made.adds == pa.schema([("embedding", pa.list_(pa.float32(), 3))])
    assert embedding.type == pa.list_(pa.float32(), 3)
    assert embedding.to_pylist() == [list(vector), None]


@pytest.mark.parametrize("layer", [None, 0, 2, -1, -3])
def test_every_place_of_the_hidden_states_may_be_asked_for(layer: int | None) -> None:
    assert task(layer=layer).settings.layer == layer


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_model_has_not_is_refused(layer: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"task\.layer: must lie between -3 and 2, the model's layers .* got {layer}"
    ):
        task(layer=layer)


def test_the_templates_own_text_is_not_cut(tokenizer: Tokenizer) -> None:
    made = task(text="<{{ text }}>", truncate="right")
    (cut,) = made.encoder(tokenizer, 5)([{"text": "abcdefgh"}])
    assert isinstance(cut, Encoded)
    assert tokenizer.decode(cut.token_ids) == "<abc>" and cut.num_dropped_tokens == 5


def test_equal_texts_can_be_computed_once() -> None:
    made: Any = task(deduplicate=True)
    assert isinstance(made, Deduplicated) and made.deduplicate and not task().deduplicate


def test_a_text_is_rendered_encoded_and_cut_as_asked(tokenizer: Tokenizer) -> None:
    records = [{"text": "x" * 5 + "~" * 4}, {"text": None}, {"text": ""}, {"text": "ab"}]
    right, null, empty, short = task(truncate="right").encoder(tokenizer, 4)(records)
    assert isinstance(right, Encoded) and (tokenizer.decode(right.token_ids), right.num_dropped_tokens) == ("xxxx", 5)
    assert isinstance(null, RecordError) and 'column "text" is null' in str(null)
    assert isinstance(empty, RecordError) and "empty" in str(empty)
    assert isinstance(short, Encoded) and short.num_dropped_tokens == 0
    (left,) = task(truncate="left").encoder(tokenizer, 4)(records[:1])
    assert isinstance(left, Encoded) and (tokenizer.decode(left.token_ids), left.num_dropped_tokens) == ("~~~~", 5)
    (refused,) = task().encoder(tokenizer, 4)(records[:1])
    assert isinstance(refused, RecordError) and "9 tokens and 4 fit; set truncate" in str(refused)


def test_any_head_will_do_and_the_columns_are_those_of_the_text() -> None:
    assert (task().head, task().reads) == ("none", {"text"})
    with pytest.raises(ConfigError, match=r'task\.text: the input has no column "text"'):
        task().check_columns(["body"])


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"prompt": "x"}, "Extra inputs"),
        ({"pooling": "max"}, "'mean' or 'last'"),
        ({"layer": 1.5}, "valid integer"),
        ({"normalize": "yes"}, "valid boolean"),
        ({"truncate": "middle"}, "'left', 'right' or 'error'"),
        ({"text": ""}, "at least 1 character"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rule(setting: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        task(**setting)
