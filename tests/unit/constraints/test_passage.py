import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptj_batch.constraints.passage import Passage, is_border
from gptj_batch.errors import RecordError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def words(text: str) -> list[str]:
    """The text cut at every border."""
    places = [place for place in range(len(text) + 1) if is_border(text, place)]
    return [text[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris, 1999!", ["Paris", ",", " ", "1999", "!"]),
        ("don't snake_case", ["don", "'", "t", " ", "snake_case"]),
        ("cafe\u0301s e\u0301", ["cafe\u0301s", " ", "e\u0301"]),
        ("東京は大きい", ["東", "京", "は", "大", "き", "い"]),
        ("A東B", ["A", "東", "B"]),
        ("👨\u200d👩\u200d👧 ok ❤\ufe0f!", ["👨\u200d👩\u200d👧", " ", "ok", " ", "❤\ufe0f", "!"]),
        ("привет мир", ["привет", " ", "мир"]),
        ("הבית שלי", ["הבית", " ", "שלי"]),
        ("", []),
    ],
)
def test_words_are_what_a_reader_takes_for_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(TEXTS)
@example("\u0301a")
@example("a \u0301b")
def test_the_words_together_are_the_text(text: str) -> None:
    assert "".join(words(text)) == text


@given(TEXTS, st.booleans(), st.none() | st.integers(1, 6))
def test_starts_and_ends_are_those_that_trying_every_part_finds(
    text: str, whole_words: bool, max_chars: int | None
) -> None:
    passage = Passage(text, whole_words=whole_words, max_chars=max_chars)
    offsets = [len(text[:place].encode()) for place in range(len(text) + 1)]
    expected: dict[int, int] = {}
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            is_trimmed = text[start:end] == text[start:end].strip()
            is_whole = not whole_words or (is_border(text, start) and is_border(text, end))
            if is_trimmed and is_whole and (max_chars is None or end - start <= max_chars):
                expected[offsets[start]] = offsets[end]
    assert passage.limits == expected
    assert list(passage.limits) == sorted(passage.limits)


@given(TEXTS, st.booleans())
def test_an_answer_may_have_white_space_behind_it(text: str, whole_words: bool) -> None:
    passage = Passage(text, whole_words=whole_words, max_chars=None)
    for place in range(1, len(text) + 1):
        end = len(text[:place].rstrip())
        is_end = end > 0 and (not whole_words or is_border(text, end))
        assert passage.may_end(len(text[:place].encode())) == is_end


def test_the_longest_answer_within_is_found() -> None:
    passage = Passage("New York is", whole_words=True, max_chars=None)
    assert [passage.last_end(0, stop) for stop in (0, 2, 3, 4, 7, 8, 11)] == [None, None, 3, 3, 3, 8, 11]


def test_half_a_surrogate_pair_is_refused_without_quoting_the_text() -> None:
    with pytest.raises(RecordError, match=re.escape("half a surrogate pair at character 4")) as caught:
        Passage("text\ud800", whole_words=False, max_chars=None)
    assert caught.value.__cause__ is None


def test_what_is_taken_out_is_taken_out_wherever_it_is_an_answer_and_nothing_reaches_across() -> None:
    passage = Passage("a bb a bbb a", whole_words=True, max_chars=None)
    rest = passage.without(b"bb")
    assert rest.limits == {0: 1, 5: 12, 7: 12, 11: 12}
    assert rest.first(b"a bbb a") == (5, 12)
    assert passage.limits != rest.limits and rest.without(b"a").limits == {7: 10}


def test_places_that_overlap_are_all_taken_out() -> None:
    assert list(Passage("aaa b", whole_words=False, max_chars=None).without(b"aa").limits) == [4]


def test_the_next_end_is_where_the_word_is_over() -> None:
    passage = Passage("one two", whole_words=True, max_chars=None)
    assert [passage.next_end(place) for place in range(8)] == [3, 3, 3, 3, 7, 7, 7, 7]
