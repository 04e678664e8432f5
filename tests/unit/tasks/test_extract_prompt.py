import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_tokenizer import train_tokenizer

from gptj_batch.backends.fake import FakeBackend
from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.prompts.tokenizer import END_OF_TEXT, Tokenizer
from gptj_batch.requests import Request
from gptj_batch.results import Generated
from gptj_batch.tasks.base import Encoded
from gptj_batch.tasks.extract_prompt import ExtractPromptSettings, ExtractPromptTask

from .test_extract import CONTEXTS

# Not the fixture: hypothesis calls a test many times.
TOKENIZER = Tokenizer(train_tokenizer())
CONTEXT_TOKENS = 600
END = TOKENIZER.token_id(END_OF_TEXT)
COLUMNS = ["answer_text", "answer_start", "answer_end", "answer_score", "answers"]


def task(**settings: Any) -> ExtractPromptTask:
    values = {
        "kind": "extract",
        "method": "prompt",
        "prompt": "{{ c }}\nQ: {{ q }}\nA:",
        "context": "{{ c }}",
        **settings,
    }
    return ExtractPromptTask(ExtractPromptSettings.model_validate(values))


def encoded(of: ExtractPromptTask, context: Any, tokens: int = CONTEXT_TOKENS) -> Encoded | RecordError:
    (result,) = of.encoder(TOKENIZER, tokens)([{"q": "the news?", "c": context}])
    return result


def asked(of: ExtractPromptTask, row: Encoded | RecordError) -> Request:
    assert isinstance(row, Encoded), row
    (request,) = of.request_maker(TOKENIZER).requests("k", list(row.token_ids), row.notes)
    assert isinstance(request, Request)
    return request


def columns(of: ExtractPromptTask, row: Encoded | RecordError, result: Generated) -> dict[str, Any]:
    """What a row's result becomes, by way of the Arrow arrays that it and the notes travel in."""
    assert isinstance(row, Encoded)
    raw = pa.array([of.pack([result]), None], type=of.raw_type).to_pylist()
    notes = pa.array([row.notes, None], type=of.notes_type).to_pylist()
    arrays = of.columns(raw, notes, TOKENIZER)
    assert [array.type for array in arrays] == [field.type for field in of.adds]
    assert [array.to_pylist()[1] for array in arrays] == [None] * 5, "a failed row is null in every column"
    return {field.name: array.to_pylist()[0] for field, array in zip(of.adds, arrays, strict=True)}


def saying(of: ExtractPromptTask, context: str, token_ids: Sequence[int], logprob: float = -0.5) -> dict[str, Any]:
    """The columns of a model that generates these tokens."""
    result = Generated(
        key="k",
        token_ids=tuple(token_ids),
        finish_reason="stop",
        num_prompt_tokens=1,
        logprobs=(logprob,) * len(token_ids),
    )
    return columns(of, encoded(of, context), result)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode_batch([text])[0]


# What is asked


def test_a_request_is_the_prompt_held_to_the_rows_own_context() -> None:
    made = task(max_answer_tokens=7)
    request = asked(made, encoded(made, "the world"))
    assert TOKENIZER.decode(request.prompt_token_ids) == "the world\nQ: the news?\nA:"
    assert request.sampling.temperature == 0.0 and request.sampling.logprobs
    assert request.sampling.max_new_tokens == 8, "and a space before the answer"
    assert request.constraint is not None
    state = request.constraint.start()
    for token in ids(" world"):
        state.accept(token)
    with pytest.raises(ValueError, match="does not go on"):
        asked(made, encoded(made, "elsewhere")).constraint.start().accept(ids("wor")[0])  # type: ignore[union-attr]


def test_a_line_break_ends_the_answers_unless_they_may_have_several_lines() -> None:
    (line_break,) = ids("\n")
    for settings, ends in (
        ({}, True),
        ({"one_line": False}, False),
        ({"max_answers": 2, "separator": "; "}, True),
        ({"max_answers": 2, "separator": "\n"}, False),
        ({"separator": "\n"}, True),
    ):
        made = task(**settings)
        assert (line_break in asked(made, encoded(made, "x")).sampling.stop_token_ids) is ends


# Answers


@given(CONTEXTS, st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())
@example("Ecuador 🙂🙂", 3, True, True, True)
@example("line\r\nline\r\n", 3, False, True, False)
@example("<|endoftext|> <|endoftext|>", 2, False, True, True)
def test_offsets_are_exact_whatever_the_context(
    context: str, max_answers: int, allow_no_answer: bool, whole_words: bool, one_line: bool
) -> None:
    made = task(
        prompt="{{ q }}",
        max_answers=max_answers,
        allow_no_answer=allow_no_answer,
        whole_words=whole_words,
        one_line=one_line,
        max_answer_tokens=6,
    )
    row = encoded(made, context)
    if isinstance(row, RecordError):
        assert not context.strip() and not allow_no_answer
        return
    (generated,) = FakeBackend(TOKENIZER.vocab_size).run([asked(made, row)])
    assert isinstance(generated, Generated), generated
    result = columns(made, row, generated)
    answers = result["answers"]
    assert 1 <= len(answers) <= max_answers
    assert [result[f"answer_{name}"] for name in ("text", "start", "end", "score")] == list(answers[0].values())
    assert all(0.0 <= answer["score"] <= 1.0 for answer in answers)
    if answers[0]["text"] is None:
        assert allow_no_answer and len(answers) == 1
        return
    for answer in answers:
        assert context[answer["start"] : answer["end"]] == answer["text"] == answer["text"].strip() != ""


@pytest.mark.parametrize("answer", ["world", "in the news", "x🙂y", "e\u0301", "\U0001d518.", "the world\r\n is"])
def test_what_the_model_says_is_the_answer(answer: str) -> None:
    context = "the world\r\n is x🙂y in the news e\u0301 \U0001d518."
    result = saying(task(), context, [*ids(" " + answer), END])
    assert (result["answer_text"], result["answer_start"]) == (answer, context.index(answer))
    assert list(result) == COLUMNS


def test_the_score_is_the_probability_of_the_answers_tokens() -> None:
    one = saying(task(), "the world", [*ids(" world"), END])
    assert one["answer_score"] == pytest.approx(math.exp(-0.5 * len(ids(" world"))))
    line = saying(task(), "the world", [*ids(" world"), *ids("\n")])
    assert line == one, "what ends it is no part of it"
    made = task(max_answers=3)
    two = saying(made, "the world news", [*ids(" news; world"), END])
    assert [answer["text"] for answer in two["answers"]] == ["news", "world"], "in the model's order"
    assert [answer["score"] for answer in two["answers"]] == pytest.approx(
        [math.exp(-0.5 * len(ids(text))) for text in (" news", " world")]
    )


def test_a_text_that_stands_there_twice_is_located_at_the_first_place() -> None:
    result = saying(task(), "in the world the news", [*ids(" the"), END])
    assert (result["answer_start"], result["answer_end"]) == (3, 6)


def test_no_answer_is_null_with_the_probability_of_the_end() -> None:
    made = task(allow_no_answer=True)
    for end in ([END], ids("\n")):
        result = saying(made, "the world", end)
        assert [result[name] for name in COLUMNS[:3]] == [None] * 3
        assert result["answer_score"] == pytest.approx(math.exp(-0.5))
        assert result["answers"] == [{"text": None, "start": None, "end": None, "score": result["answer_score"]}]


# Rows that cannot be asked


def test_an_empty_context_is_an_error_or_no_answer() -> None:
    for context in ("", "  \r\n"):
        error = encoded(task(), context)
        assert isinstance(error, RecordError) and str(error).startswith("the context is empty and holds no answer")
        made = task(allow_no_answer=True)
        request = asked(made, encoded(made, context))
        assert request.constraint is not None and request.constraint.start().may_end
        assert not request.constraint.start().allowed()


def test_null_is_the_rows_error() -> None:
    error = encoded(task(), None)
    assert isinstance(error, RecordError) and str(error).startswith('column "c" is null')


def test_a_prompt_that_does_not_fit_is_an_error_or_cut_and_its_context_is_not() -> None:
    context = "x" * 100
    error = encoded(task(max_answer_tokens=9), context, tokens=60)
    assert isinstance(error, RecordError)
    assert "tokens and 50 fit; set truncate to left or right, lower max_answer_tokens" in str(error)
    row = encoded(task(max_answer_tokens=9, truncate="left"), context, tokens=60)
    assert isinstance(row, Encoded)
    assert len(row.token_ids) == 50 and row.num_dropped_tokens > 0 and row.notes["context"] == context


# Settings


def test_answers_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.max_answer_tokens: 30 for each of 3 \(max_answers\), .* of 64"):
        task(max_answers=3).encoder(TOKENIZER, 64)


def test_several_answers_need_something_between_them() -> None:
    for separator in ("", "  "):
        with pytest.raises(ValidationError, match="must be more than spaces"):
            task(max_answers=2, separator=separator)
        assert task(separator=separator).settings.max_answers == 1


def test_columns_are_those_of_both_templates() -> None:
    assert task().reads == {"q", "c"}
    with pytest.raises(ConfigError, match=r'task\.context: the input has no column "d"'):
        task(context="{{ d }}").check_columns(["q", "c"])
    with pytest.raises(ConfigError, match=r'task\.prompt: the input has no column "q"'):
        task().check_columns(["c"])
