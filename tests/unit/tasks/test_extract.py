from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_tokenizer import train_tokenizer

from gptj_batch.backends.fake import FakeBackend
from gptj_batch.demo import QUESTION_ANSWERING_LAYOUT, QUESTION_ANSWERING_PREFIX
from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import SpanRequest
from gptj_batch.results import SpanLogits
from gptj_batch.tasks.base import Encoded
from gptj_batch.tasks.extract import ExtractSettings, ExtractTask

# Not the fixture: hypothesis calls a test many times.
TOKENIZER = Tokenizer(train_tokenizer())
CONTEXT_TOKENS = 64
QUESTION = "the news?"


def task(**settings: Any) -> ExtractTask:
    values = {"kind": "extract", "question": "{{ q }}", "context": "{{ c }}", "max_question_tokens": 20, **settings}
    return ExtractTask(ExtractSettings.model_validate(values))


def encoded(of: ExtractTask, context: Any, question: Any = QUESTION) -> Encoded | RecordError:
    (result,) = of.encoder(TOKENIZER, CONTEXT_TOKENS)([{"q": question, "c": context}])
    return result


def asked(of: ExtractTask, row: Encoded | RecordError) -> list[SpanRequest]:
    assert isinstance(row, Encoded), row
    requests = of.request_maker(TOKENIZER).requests("k", list(row.token_ids), row.notes)
    return [request for request in requests if isinstance(request, SpanRequest)]


def columns(of: ExtractTask, row: Encoded | RecordError, results: Sequence[SpanLogits]) -> dict[str, Any]:
    """What a row's results become, by way of the Arrow arrays that they and the notes travel in."""
    assert isinstance(row, Encoded)
    raw = pa.array([of.pack(results), None], type=of.raw_type).to_pylist()
    notes = pa.array([row.notes, None], type=of.notes_type).to_pylist()
    arrays = of.columns(raw, notes, TOKENIZER)
    assert [array.type for array in arrays] == [field.type for field in of.adds]
    assert [array.to_pylist()[1] for array in arrays] == [None] * 5, "a failed row is null in every column"
    return {field.name: array.to_pylist()[0] for field, array in zip(of.adds, arrays, strict=True)}


def by_fake(of: ExtractTask, context: str) -> dict[str, Any]:
    row = encoded(of, context)
    results = FakeBackend().run(asked(of, row))
    return columns(of, row, [result for result in results if isinstance(result, SpanLogits)])


def pointing(of: ExtractTask, context: str, answer: str | None) -> dict[str, Any]:
    """The columns of a model that sees the answer's tokens, or the null position, and nothing else."""
    row = encoded(of, context)
    (request,) = asked(of, row)
    first = last = 0
    if answer is not None:
        assert isinstance(row, Encoded)
        start, end = context.index(answer), context.index(answer) + len(answer)
        chars = list(enumerate(zip(row.notes["starts"], row.notes["ends"], strict=True), start=1))
        inside = [place for place, (low, high) in chars if start <= low < high <= end]
        first, last = inside[0], inside[-1]
    places = range(len(request.prompt_token_ids) - request.first_token)
    logits = [tuple(9.0 * (place == wanted) for place in places) for wanted in (first, last)]
    return columns(of, row, [SpanLogits(key="k", start_logits=logits[0], end_logits=logits[1], num_prompt_tokens=1)])


# The layout


def test_a_request_is_the_layout_that_the_head_was_trained_on() -> None:
    made = task()
    (request,) = asked(made, encoded(made, "the world"))
    whole = QUESTION_ANSWERING_LAYOUT.format(question=QUESTION, context="the world")
    assert TOKENIZER.decode(request.prompt_token_ids) == whole
    prefix = TOKENIZER.decode(request.prompt_token_ids[: request.first_token + 1])
    assert prefix == QUESTION_ANSWERING_PREFIX.format(question=QUESTION), "the null position is the prefix's last token"


@given(st.text("the world news", min_size=1, max_size=300), st.none() | st.integers(0, 20))
def test_windows_hold_the_question_and_together_the_whole_context(context: str, stride: int | None) -> None:
    made = task(allow_no_answer=True, stride_tokens=stride)
    row = encoded(made, context)
    assert isinstance(row, Encoded)
    requests = asked(made, row)
    prefix = requests[0].prompt_token_ids[: requests[0].first_token + 1]
    assert all(list(request.prompt_token_ids[: len(prefix)]) == list(prefix) for request in requests)
    assert all(len(request.prompt_token_ids) <= CONTEXT_TOKENS for request in requests)
    joined: list[int] = []
    for window, request in zip(row.notes["windows"], requests, strict=True):
        joined[window["first"] :] = request.prompt_token_ids[len(prefix) :]
    assert [*prefix, *joined] == list(row.token_ids)


# Answers


CONTEXTS = st.text(
    st.sampled_from("ab \r\n\t\u00a0\u3000e\u0301🙂👩‍👩‍👧‍👦\U0001d518\U0001f1e9\U0001f1ea漢字Ω.,-'\u200d\x1c<|>")
    | st.characters(codec="utf-8"),
    max_size=80,
)


@given(CONTEXTS, st.integers(1, 4), st.booleans())
@example("Ecuador 🙂🙂", 3, True)
@example("line\r\nline\r\n", 3, False)
@example("<|endoftext|> <|endoftext|>", 2, False)
def test_offsets_are_exact_whatever_the_context(context: str, top_k: int, allow_no_answer: bool) -> None:
    made = task(top_k=top_k, allow_no_answer=allow_no_answer)
    row = encoded(made, context)
    if isinstance(row, RecordError):
        assert not context.strip() and not allow_no_answer
        return
    result = by_fake(made, context)
    answers = result["answers"]
    assert 1 <= len(answers) <= top_k
    assert [result[f"answer_{name}"] for name in ("text", "start", "end", "score")] == list(answers[0].values())
    assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)
    assert sum(answer["score"] for answer in answers) <= 1.0 + 1e-9
    assert sum(answer["text"] is None for answer in answers) <= allow_no_answer
    spans = [answer for answer in answers if answer["text"] is not None]
    for answer in spans:
        assert context[answer["start"] : answer["end"]] == answer["text"] == answer["text"].strip() != ""
    for index, one in enumerate(spans):
        assert all(one["end"] <= other["start"] or other["end"] <= one["start"] for other in spans[:index])


@pytest.mark.parametrize("answer", ["world", "in the news", "the", "x🙂y", "é", "\U0001d518"])
def test_the_span_that_the_model_points_at_is_the_answer(answer: str) -> None:
    context = "the world\r\n is x🙂y in the news é \U0001d518."
    result = pointing(task(), context, answer)
    assert result["answer_text"] == answer
    assert result["answer_start"] == context.index(answer)
    assert result["answer_score"] > 0.9
    assert result["answers"] == [{"text": answer, "start": result["answer_start"], "end": result["answer_end"],
                                  "score": result["answer_score"]}]  # fmt: skip


def test_a_part_of_a_character_is_the_whole_of_it() -> None:
    made = task(max_answer_tokens=1)
    row = encoded(made, "🙂")
    assert isinstance(row, Encoded) and len(row.notes["starts"]) > 2, "one character, several tokens"
    assert by_fake(made, "🙂")["answer_text"] == "🙂"


def test_no_answer_is_null_where_it_is_allowed_and_a_span_where_it_is_not() -> None:
    null = pointing(task(allow_no_answer=True, top_k=2), "the world", None)
    assert (null["answer_text"], null["answer_start"], null["answer_end"]) == (None, None, None)
    assert null["answer_score"] > 0.9 and null["answers"][1]["text"] is not None
    span = pointing(task(), "the world", None)
    assert span["answer_text"] in "the world" and span["answer_score"] == null["answers"][1]["score"] < 0.1


def test_an_empty_context_is_an_error_or_no_answer() -> None:
    for context in ("", "  \r\n"):
        error = encoded(task(), context)
        assert isinstance(error, RecordError) and str(error).startswith("the context is empty and holds no answer")
        result = by_fake(task(allow_no_answer=True), context)
        assert (result["answer_text"], result["answer_score"]) == (None, 1.0)


def test_what_cannot_be_asked_is_the_rows_error() -> None:
    for question, context, message in (
        ("", "x", "the question is empty"),
        (" \n", "x", "the question is empty"),
        (None, "x", 'column "q" is null'),
        ("x", None, 'column "c" is null'),
        ("x" * 40, "x", "the question has 41 tokens and max_question_tokens is 20; shorten it"),
    ):
        error = encoded(task(), context, question)
        assert isinstance(error, RecordError) and str(error).startswith(message)


@pytest.mark.parametrize("num_chars", [19, 20])
def test_a_question_may_be_just_as_long_as_allowed(num_chars: int) -> None:
    # A space and as many tokens as characters, since no two of them were merged.
    row = encoded(task(), "x", "x" * num_chars)
    assert isinstance(row, Encoded) == (num_chars == 19)


def test_settings_that_the_models_context_rules_out_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.max_question_tokens: 64 leave no room for a text"):
        task(max_question_tokens=64).encoder(TOKENIZER, CONTEXT_TOKENS)
    with pytest.raises(ConfigError, match=r"task\.stride_tokens: must be below \d+, the tokens of a window.*, got 60"):
        task(stride_tokens=60).encoder(TOKENIZER, CONTEXT_TOKENS)


def test_columns_are_those_of_both_templates() -> None:
    made = task(question="Who?")
    assert task().reads == {"q", "c"} and made.reads == {"c"}
    with pytest.raises(ConfigError, match=r'task\.context: the input has no column "c"'):
        made.check_columns(["q"])
    with pytest.raises(ConfigError, match=r'task\.question: the input has no column "q"'):
        task().check_columns(["c"])


# Words, windows, and the pipeline's scores


def test_an_answer_can_be_extended_to_whole_words() -> None:
    made = task(align_to_words=True, max_answer_tokens=1)
    for context in ("xyzzy", "a xyzzy\r\nb", "don't, xyzzy!"):
        text = by_fake(made, context)["answer_text"]
        assert text in ("xyzzy", "a", "b", "don", "'t", ",", "!")
    assert by_fake(task(max_answer_tokens=1), "xyzzy")["answer_text"] in list("xyz"), "else it is one token"


def test_answers_that_are_extended_do_not_overlap_either() -> None:
    result = by_fake(task(align_to_words=True, top_k=9), "xyzzy zyxxy 🙂🙂")
    spans = sorted((answer["start"], answer["end"]) for answer in result["answers"])
    assert all(left[1] <= right[0] for left, right in pairwise(spans))


def test_a_window_is_no_longer_than_asked_for() -> None:
    made = task(window_tokens=40)
    context = "the world news " * 20
    assert all(len(request.prompt_token_ids) <= 40 for request in asked(made, encoded(made, context)))
    assert len(asked(made, encoded(made, context))) > len(asked(task(), encoded(task(), context)))
    assert asked(task(window_tokens=9999), encoded(task(window_tokens=9999), context)) == asked(
        task(), encoded(task(), context)
    )


def test_a_window_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"leave no room for a text in task\.window_tokens \(24\); lower it, or raise"
    ):
        task(window_tokens=24).encoder(TOKENIZER, CONTEXT_TOKENS)


def test_the_pipelines_scoring_brings_the_pipelines_sizes_unless_they_are_set() -> None:
    settings = task(scoring="pipeline").settings
    assert (settings.max_answer_tokens, settings.window_tokens, settings.align_to_words) == (15, 384, True)
    settings = task(scoring="pipeline", max_answer_tokens=7, align_to_words=False).settings
    assert (settings.max_answer_tokens, settings.window_tokens, settings.align_to_words) == (7, 384, False)
    assert ExtractSettings.model_validate(settings.model_dump()) == settings


@given(CONTEXTS, st.integers(1, 4), st.booleans(), st.booleans())
def test_offsets_are_exact_with_the_pipelines_scoring_too(
    context: str, top_k: int, allow_no_answer: bool, align_to_words: bool
) -> None:
    made = task(scoring="pipeline", top_k=top_k, allow_no_answer=allow_no_answer, align_to_words=align_to_words)
    if isinstance(encoded(made, context), RecordError):
        assert not context.strip() and not allow_no_answer
        return
    answers = by_fake(made, context)["answers"]
    assert 1 <= len(answers) <= top_k
    assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)
    for answer in (answer for answer in answers if answer["text"] is not None):
        assert context[answer["start"] : answer["end"]] == answer["text"] == answer["text"].strip() != ""


def test_no_answer_is_null_with_the_pipelines_scoring_too() -> None:
    null = pointing(task(scoring="pipeline", allow_no_answer=True, top_k=2), "the world", None)
    assert (null["answer_text"], null["answer_start"], null["answer_end"]) == (None, None, None)
    assert null["answer_score"] > 0.9 and null["answers"][1]["text"] is not None
    assert pointing(task(scoring="pipeline"), "the world", None)["answer_text"] in "the world"
