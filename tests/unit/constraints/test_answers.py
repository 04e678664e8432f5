import random
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptj_batch.constraints.answers import Answer, AnswersConstraint
from gptj_batch.constraints.passage import is_border
from gptj_batch.constraints.vocabulary import Vocabulary
from gptj_batch.errors import RecordError

from .test_verbatim import PARAGRAPH, TEXTS
from .walks import listed, text_bytes, tokenizer_of, walk

TEXT = "Paris, Rome and Paris; the Tour Eiffel"


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(tokenizer_of("tiny"))


def make(text: str, **options: object) -> AnswersConstraint:
    values = {"max_answer_tokens": 40, "max_answers": 3, "separator": "; ", **options}
    return AnswersConstraint(text, vocabulary(), **values)  # type: ignore[arg-type]


def ids(text: str) -> list[int]:
    return tokenizer_of("tiny").encode_batch([text])[0]


def found(generated: str, text: str = TEXT, **options: object) -> list[str]:
    return [text[place.start : place.end] for place in make(text, **options).locate(ids(generated))]


@settings(max_examples=150)
@given(TEXTS, st.booleans(), st.integers(1, 3), st.integers(1, 12), st.sampled_from([";", "\n", " and ", "e"]),
       st.integers(0, 2**32))  # fmt: skip
@example("a a a", True, 3, 1, ";", 0)
@example("😀 \u0301", True, 3, 1, ";", 3)
@example(PARAGRAPH, True, 3, 5, ";", 1)
def test_whatever_is_generated_are_parts_of_the_text_and_none_shares_a_character_with_another(
    text: str, whole_words: bool, max_answers: int, max_answer_tokens: int, separator: str, seed: int
) -> None:
    options = {"whole_words": whole_words, "max_answer_tokens": max_answer_tokens}
    try:
        constraint = make(text, **options, max_answers=max_answers, separator=separator)
    except RecordError:
        assert not text.strip()
        return
    rng = random.Random(seed)
    most = max_answers * (1 + max_answer_tokens + len(separator))
    for _ in range(5):
        token_ids, is_whole = walk(constraint, rng, most)
        assert is_whole, "the budget is enough for every end"
        places = constraint.locate(token_ids)
        assert 1 <= len(places) <= max_answers
        for index, place in enumerate(places):
            answer = text[place.start : place.end]
            assert answer == answer.strip() != ""
            assert not whole_words or (is_border(text, place.start) and is_border(text, place.end))
            assert all(place.end <= other.start or other.end <= place.start for other in places[:index])
            assert all(text[other.start : other.end] != answer for other in places[:index])
            made = text_bytes(tokenizer_of("tiny"), token_ids[place.first : place.stop]).decode(errors="replace")
            assert made.strip().rstrip("\ufffd").startswith(answer) or answer.startswith(made.strip().rstrip("\ufffd"))
            assert place.stop - place.first <= max_answer_tokens + 1, "one more for a space"


@pytest.mark.parametrize(
    ("generated", "answers"),
    [
        ("Paris", ["Paris"]),
        (" Paris; Rome", ["Paris", "Rome"]),
        ("Paris;Rome;the Tour", ["Paris", "Rome", "the Tour"]),
        ("Rome; Paris,", ["Rome", "Paris,"]),
        ("Paris; Rome; the Tour;", ["Paris", "Rome", "the Tour"]),
    ],
)
def test_answers_stand_between_separators(generated: str, answers: list[str]) -> None:
    assert found(generated) == answers


def test_an_answer_knows_its_tokens() -> None:
    token_ids = ids(" Paris; Rome")
    first, second = make(TEXT).locate(token_ids)
    decode = tokenizer_of("tiny").decode
    assert first == Answer(0, 5, 0, first.stop) and decode(token_ids[: first.stop]) == " Paris"
    assert (second.start, second.end) == (7, 11) and decode(token_ids[second.first : second.stop]) == " Rome"


def test_what_an_answer_says_is_taken_out_wherever_it_stands() -> None:
    for again in ("Paris;Paris", "Paris; Rome and Paris", "Rome; Paris, Rome"):
        with pytest.raises(ValueError, match="does not go on with any part"):
            make(TEXT).locate(ids(again))


def test_a_text_that_stands_there_several_times_is_at_its_first_place() -> None:
    (place,) = make("b a a", max_answers=1).locate(ids("a"))
    assert (place.start, place.end) == (2, 3)


def test_no_answer_holds_the_separator() -> None:
    assert found("Rome and Paris; the", max_answers=2, separator=";") == ["Rome and Paris", "the"]
    assert found("Rome and Paris; the", max_answers=1, separator="") == ["Rome and Paris; the"]


def test_a_separator_behind_the_last_answer_is_the_end() -> None:
    for text, max_answers, generated in ((TEXT, 2, "Paris; Rome;"), ("Paris", 9, "Paris;")):
        state = make(text, max_answers=max_answers).start()
        for token in ids(generated):
            assert not state.is_complete
            state.accept(token)
        assert state.is_complete and state.may_end and not listed(state.allowed())


def test_between_a_separator_and_an_answer_is_no_end() -> None:
    state = make(TEXT, separator="::").start()
    for token in ids("Paris"):
        state.accept(token)
    assert state.may_end
    for token in ids(":") * 2:
        state.accept(token)
        assert not state.may_end and not state.is_complete


def test_a_long_answer_loses_a_word_that_is_cut_and_a_long_first_word_is_completed() -> None:
    # Each character of these words is a token.
    text = "xyzxyz xyzzy"
    assert found(" xyzxyz xy", text, max_answers=1, max_answer_tokens=9) == ["xyzxyz"]
    assert found(" xyz", text, max_answers=1, max_answer_tokens=3) == ["xyzxyz"]
    partial = ids("😀")[:1]
    (place,) = make("a😀😀", max_answers=1, max_answer_tokens=1, whole_words=False).locate(partial)
    assert (place.start, place.end) == (1, 2)


def test_an_answer_is_over_with_its_last_token_and_a_space_before_it_is_none() -> None:
    state = make("xyz xyz", max_answers=1, max_answer_tokens=2).start()
    for token in ids(" ") + ids("x"):
        state.accept(token)
        assert not state.is_complete
    state.accept(ids("y")[0])
    assert state.is_complete and state.may_end
    with pytest.raises(ValueError, match="an answer that is over"):
        state.accept(ids("z")[0])


def test_there_may_be_no_answer_where_that_is_allowed() -> None:
    assert make(TEXT, allow_none=True).start().may_end
    assert make(TEXT, allow_none=True).locate([]) == make(" ", allow_none=True).locate([]) == []
    assert not make(TEXT).start().may_end
    with pytest.raises(RecordError, match="is empty"):
        make(" \r\n")
