import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_tokenizer import train_tokenizer

from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.prompts.tokenizer import END_OF_TEXT, Tokenizer
from gptj_batch.requests import ScoreRequest
from gptj_batch.results import Scored
from gptj_batch.stages.duplicates import request_identity
from gptj_batch.tasks.base import Deduplicated, Encoded
from gptj_batch.tasks.score import ScoreSettings, ScoreTask, ScoreWindow, perplexity, score_windows

TOKENIZER = Tokenizer(train_tokenizer())


def task(**settings: Any) -> ScoreTask:
    return ScoreTask(ScoreSettings.model_validate({"kind": "score", "text": "{{ text }}", **settings}))


def with_context(**settings: Any) -> ScoreTask:
    return task(context="{{ context }}", **settings)


def test_equal_texts_can_be_computed_once() -> None:
    made: Any = task(deduplicate=True)
    assert isinstance(made, Deduplicated) and made.deduplicate and not task().deduplicate
    (one,), (other,) = requests(made, text="abab"), requests(made, text="abab")
    assert request_identity(one) == request_identity(other)


def encoded(of: ScoreTask, max_tokens: int = 64, **record: str | None) -> Encoded | RecordError:
    (result,) = of.encoder(TOKENIZER, max_tokens)([record])
    return result


def requests(of: ScoreTask, max_tokens: int = 64, **record: str | None) -> list[ScoreRequest]:
    row = encoded(of, max_tokens, **record)
    assert isinstance(row, Encoded)
    notes = pa.array([row.notes], type=of.notes_type).to_pylist()[0]
    made = of.request_maker(TOKENIZER).requests("k", list(row.token_ids), notes)
    assert all(isinstance(request, ScoreRequest) for request in made)
    return [request for request in made if isinstance(request, ScoreRequest)]


def columns(of: ScoreTask, *windows: tuple[float, ...]) -> dict[str, Any]:
    results = [Scored(key="k", token_logprobs=logprobs, num_prompt_tokens=9) for logprobs in windows]
    raw = pa.array([of.pack(results), None], type=of.raw_type)
    arrays = of.columns(raw.to_pylist(), [None, None], TOKENIZER)
    assert [array.type for array in arrays] == [field.type for field in of.adds]
    assert all(array.to_pylist()[1] is None for array in arrays), "a failed row is null in every column"
    return {field.name: array.to_pylist()[0] for field, array in zip(of.adds, arrays, strict=True)}


# What is asked


def test_a_text_alone_is_scored_from_its_second_token_on() -> None:
    (request,) = requests(task(), text="xyz")
    assert request == ScoreRequest(key="k#0", prompt_token_ids=TOKENIZER.encode_batch(["xyz"])[0], first_token=1)


def test_a_text_behind_a_context_is_scored_whole_and_the_context_is_not() -> None:
    (request,) = requests(with_context(), context="the world", text=" is news")
    context, text = TOKENIZER.encode_batch(["the world", " is news"])
    assert (request.prompt_token_ids, request.first_token) == ([*context, *text], len(context))


def test_the_border_is_between_two_tokens_whatever_the_tokenizer_would_join() -> None:
    whole, text = TOKENIZER.encode_batch(["the world", "orld"])
    (request,) = requests(with_context(), context="the w", text="orld")
    assert len(request.prompt_token_ids) > len(whole), "together they would be fewer"
    assert list(request.prompt_token_ids[request.first_token :]) == text


def test_an_empty_context_is_none() -> None:
    assert requests(with_context(), context="", text="xyz") == requests(task(), text="xyz")


def test_a_first_token_is_scored_behind_the_end_of_text_where_no_context_stands_before_it() -> None:
    end_of_text, (x,) = TOKENIZER.token_id(END_OF_TEXT), TOKENIZER.encode_batch(["x"])[0]
    (request,) = requests(task(score_first_token=True), text="x")
    assert (request.prompt_token_ids, request.first_token) == ([end_of_text, x], 1)
    assert requests(with_context(score_first_token=True), context="", text="x") == [request]
    record = {"context": "the", "text": "x"}
    assert requests(with_context(score_first_token=True), **record) == requests(with_context(), **record)


def test_a_single_token_without_context_asks_for_nothing() -> None:
    assert requests(task(), text="x") == []


@pytest.mark.parametrize(("num_chars", "num_windows"), [(16, 1), (17, 2), (24, 2), (25, 3)])
def test_a_long_text_is_read_in_windows_half_a_context_apart(num_chars: int, num_windows: int) -> None:
    made = requests(task(), 16, text="~" * num_chars)
    assert len(made) == num_windows and len({request.key for request in made}) == num_windows
    assert all(len(request.prompt_token_ids) <= 16 for request in made)
    assert [request.first_token for request in made] == [1, 8, 8][:num_windows]


@given(
    num_text=st.integers(1, 90),
    num_context=st.integers(0, 60),
    room=st.integers(2, 40),
    stride=st.integers(1, 39),
    begins=st.booleans(),
)
def test_every_token_is_scored_once_behind_all_before_it_or_enough_of_that(
    num_text: int, num_context: int, room: int, stride: int, begins: bool
) -> None:
    stride = min(stride, room - 1)
    made = with_context(stride_tokens=stride, truncate="left", score_first_token=begins)
    row = encoded(made, room, context="#" * num_context, text="~" * num_text)
    assert isinstance(row, Encoded)
    num_scored = num_text if num_context or begins else num_text - 1
    windows = [ScoreWindow(**window) for window in row.notes]
    scored = [(token, window) for window in windows for token in range(window.first_scored, window.stop)]
    num_tokens = len(row.token_ids)
    assert [token for token, _ in scored] == list(range(num_tokens - num_scored, num_tokens))
    for token, window in scored:
        assert window.stop - window.first <= room
        assert window.first == 0 or token - window.first >= room - stride
    assert row.num_dropped_tokens == max(0, num_context - (room - min(num_text, stride)))


def test_windows_are_those_of_transformers_perplexity_documentation() -> None:
    num_tokens, room, stride = 1001, 64, 24
    expected = []
    previous_end = 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + room, num_tokens)
        # the first token of all has no label left once labels are shifted
        expected.append(ScoreWindow(begin, end, max(1, previous_end)))
        previous_end = end
        if end == num_tokens:
            break
    assert score_windows(num_tokens, 0, room, stride) == expected


# What is refused


def test_a_context_must_leave_room_for_the_text_or_loses_its_beginning() -> None:
    record = {"context": "#" * 14, "text": "~" * 3}
    refused = encoded(with_context(), 16, **record)
    assert isinstance(refused, RecordError)
    assert str(refused).startswith("the context has 14 tokens and 13 fit before the text; set truncate to left")
    cut = encoded(with_context(truncate="left"), 16, **record)
    assert isinstance(cut, Encoded) and (len(cut.token_ids), cut.num_dropped_tokens) == (16, 1)
    whole = encoded(with_context(), 16, **{**record, "context": "#" * 13})
    assert isinstance(whole, Encoded) and whole.num_dropped_tokens == 0


def test_before_a_long_text_a_context_leaves_room_for_a_stride_of_it() -> None:
    made = with_context(stride_tokens=4)
    fits, too_long = (encoded(made, 16, context="#" * number, text="~" * 40) for number in (12, 13))
    assert isinstance(fits, Encoded) and isinstance(too_long, RecordError)
    assert "13 tokens and 12 fit" in str(too_long)


def test_a_record_without_a_text_is_an_error_of_its_own() -> None:
    records = [{"text": "", "context": "a"}, {"text": None, "context": "a"}, {"text": "b", "context": None}]
    empty, null, no_context = with_context().encoder(TOKENIZER, 16)([*records])
    assert isinstance(empty, RecordError) and "the rendered text is empty" in str(empty)
    assert isinstance(null, RecordError) and 'column "text" is null' in str(null)
    assert isinstance(no_context, RecordError) and 'column "context" is null' in str(no_context)
    before = RecordError("bad bytes")
    first, good = with_context().encoder(TOKENIZER, 16)([before, {"text": "b", "context": "a"}])
    assert first is before and isinstance(good, Encoded)


@pytest.mark.parametrize("stride", [16, 100])
def test_windows_must_overlap(stride: int) -> None:
    with pytest.raises(ConfigError, match=rf"task\.stride_tokens: must be below 16, .* got {stride}"):
        task(stride_tokens=stride).encoder(TOKENIZER, 16)


def test_a_tokenizer_without_an_end_of_text_has_nothing_to_put_before_a_text() -> None:
    class Without(Tokenizer):
        def token_id(self, token: str) -> int | None:
            return None

    with pytest.raises(ConfigError, match=r"task\.score_first_token: the tokenizer has no <\|endoftext\|>"):
        task(score_first_token=True).encoder(Without(train_tokenizer()), 16)


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"prompt": "x"}, "Extra inputs"),
        ({"stride_tokens": 0}, "greater than or equal to 1"),
        ({"truncate": "right"}, "'left' or 'error'"),
        ({"text": ""}, "at least 1 character"),
        ({"context": ""}, "at least 1 character"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rule(setting: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        task(**setting)


def test_columns_are_those_of_both_templates() -> None:
    assert (with_context().head, with_context().reads, task().reads) == ("causal-lm", {"text", "context"}, {"text"})
    with_context().check_columns(["text", "context"])
    with pytest.raises(ConfigError, match=r'task\.context: the input has no column "context"'):
        with_context().check_columns(["text"])
    with pytest.raises(ConfigError, match=r'task\.text: the input has no column "text"'):
        with_context().check_columns(["context"])


# What is added


def test_the_sum_is_over_all_windows_and_perplexity_is_per_token() -> None:
    found = columns(task(), (-1.0, -2.0), (-0.5,))
    assert (found["logprob_sum"], found["num_scored_tokens"]) == (-3.5, 3)
    assert found["perplexity"] == pytest.approx(math.exp(3.5 / 3))


def test_of_nothing_scored_there_is_no_perplexity() -> None:
    assert columns(task()) == {"logprob_sum": 0.0, "num_scored_tokens": 0, "perplexity": None}


def test_a_perplexity_past_all_doubles_is_infinite() -> None:
    assert perplexity(-1e6, 3) == math.inf
    assert perplexity(-0.0, 3) == 1.0


def test_many_small_numbers_are_summed_exactly() -> None:
    assert columns(task(), *[(-0.1,) * 10] * 100)["logprob_sum"] == pytest.approx(-100.0, abs=1e-12)
