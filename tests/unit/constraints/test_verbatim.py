import random
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptj_batch.constraints.passage import is_border
from gptj_batch.constraints.verbatim import VerbatimConstraint
from gptj_batch.constraints.vocabulary import Vocabulary
from gptj_batch.errors import RecordError

from .walks import NAMES, listed, text_bytes, tokenizer_of, walk

PARAGRAPH = (
    "Paris is the capital of France.\r\nIts 2,102,650 inhabitants \u2013 c\u2019est la vie \u2013 "
    "love the Tour Eiffel 🗼, the cafe\u0301s and the 👨\u200d👩\u200d👧\u200d👦 parks;\tthe city\u00a0of light. "
    "東京 is the capital of Japan. The end, the end"
)
NASTY = [
    "a", "b", " ", "\n", "\r\n", "\t", "\u00a0",
    "\u2028", "\u0301", "é", "ß", "😀", "👩\u200d🚀", "\ufe0f", "東", "the", "world", "_", "<|endoftext|>", "\0",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(NASTY), max_size=16).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=16
)


@cache
def vocabulary_of(name: str) -> Vocabulary:
    return Vocabulary(tokenizer_of(name))


def make(text: str, name: str = "tiny", **options: object) -> VerbatimConstraint:
    return VerbatimConstraint(text, vocabulary_of(name), **options)  # type: ignore[arg-type]


def ids(text: str, name: str = "tiny") -> list[int]:
    return tokenizer_of(name).encode_batch([text])[0]


def answer(text: str, of: str, name: str = "tiny", **options: object) -> tuple[tuple[int, int] | None, str]:
    """Where the tokens of `of` stand in the text, and the text there."""
    place = make(text, name, **options).locate(ids(of, name))
    return place, "" if place is None else text[place[0] : place[1]]


# What may be generated


@settings(max_examples=150)
@given(TEXTS, st.booleans(), st.none() | st.integers(1, 8), st.integers(0, 2**32))
@example("a", False, None, 0)
@example(" \ufe0f", True, None, 0)
@example(" \u200d ", True, None, 0)
@example("\r\n\r\n😀\r\n", True, 1, 1)
def test_whatever_is_generated_stands_in_the_text_where_it_is_said_to(
    text: str, whole_words: bool, max_chars: int | None, seed: int
) -> None:
    try:
        constraint = make(text, whole_words=whole_words, max_chars=max_chars)
    except RecordError:
        assert not text.strip() or (whole_words and max_chars is not None)
        return
    rng = random.Random(seed)
    for _ in range(5):
        token_ids, is_whole = walk(constraint, rng, 40)
        place = constraint.locate(token_ids)
        if not is_whole:
            continue
        assert place is not None
        start, end = place
        found = text[start:end]
        generated = text_bytes(tokenizer_of("tiny"), token_ids).decode()
        assert found == generated.strip() and found
        assert max_chars is None or len(found) <= max_chars
        assert not whole_words or (is_border(text, start) and is_border(text, end))
        if not whole_words:
            assert text.find(found) == start, "the first place"


@settings(max_examples=40)
@given(TEXTS.map(lambda text: text[:7]), st.booleans(), st.none() | st.integers(1, 5), st.integers(0, 2**32))
def test_masks_are_those_that_trying_every_token_on_every_answer_finds(
    text: str, whole_words: bool, max_chars: int | None, seed: int
) -> None:
    try:
        constraint = make(text, whole_words=whole_words, max_chars=max_chars)
    except RecordError:
        return
    answers = {
        text[start:end].encode()
        for start in range(len(text))
        for end in range(start + 1, len(text) + 1)
        if text[start:end] == text[start:end].strip()
        and (not whole_words or (is_border(text, start) and is_border(text, end)))
        and (max_chars is None or end - start <= max_chars)
    }
    whole = [before + found for found in answers for before in (b"", b" ")]
    vocabulary, rng = vocabulary_of("tiny"), random.Random(seed)
    state, so_far = constraint.start(), b""
    while not state.is_complete:
        expected = [
            token
            for token, more in enumerate(vocabulary.bytes_of)
            if more and any(each.startswith(so_far + more) for each in whole)
        ]
        assert listed(state.allowed()) == expected
        assert state.may_end or so_far not in whole
        token = rng.choice(expected)
        so_far += vocabulary.bytes_of[token]
        state.accept(token)
    assert so_far in whole and state.allowed() == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("whole_words", [False, True])
def test_thousands_of_random_tokens_of_real_vocabularies_stay_in_the_text(name: str, whole_words: bool) -> None:
    constraint = make(PARAGRAPH, name, whole_words=whole_words)
    rng = random.Random(0)
    num_tokens = 0
    while num_tokens < 3000:
        token_ids, is_whole = walk(constraint, rng, 30, end_share=0.1)
        num_tokens += len(token_ids)
        place = constraint.locate(token_ids)
        generated = text_bytes(tokenizer_of(name), token_ids).decode(errors="ignore").strip()
        if is_whole:
            assert place is not None and PARAGRAPH[place[0] : place[1]] == generated
        elif place is not None:
            assert generated.startswith(PARAGRAPH[place[0] : place[1]])


@pytest.mark.parametrize("name", NAMES)
def test_the_usual_tokens_of_an_answer_are_allowed_wherever_it_stands(name: str) -> None:
    for said in ("Paris", "capital of France", "2,102,650", "🗼", "cafe\u0301s", "東京 is", "the end", "light"):
        for before in ("", " "):
            state = make(PARAGRAPH, name, whole_words=True).start()
            for token in ids(before + said, name):
                assert token in listed(state.allowed())
                state.accept(token)
            assert state.may_end


def test_an_end_is_permitted_at_whole_characters_and_words_only() -> None:
    def ends(text: str, whole_words: bool) -> list[bool]:
        state = make(text, whole_words=whole_words).start()
        found = [state.may_end]
        for byte in text.encode():
            state.accept(vocabulary_of("tiny").ids(bytes([byte]))[0])
            found.append(state.may_end)
        return found

    assert ends("é😀", False) == [False, False, True, False, False, False, True]
    assert ends("ab c", True) == [False, False, True, True, True]
    assert ends("e\u0301", True) == [False, False, False, True]
    assert ends("e\u0301", False) == [False, True, False, True]


def test_a_sequence_is_complete_where_nothing_can_follow() -> None:
    state = make("the world").start()
    for token in ids("the"):
        state.accept(token)
    assert state.may_end and not state.is_complete
    for token in ids(" world"):
        state.accept(token)
    assert state.may_end and state.is_complete and state.allowed() == ()


def test_states_of_one_text_do_not_share_anything() -> None:
    constraint = make("the news of the world")
    first, second = constraint.start(), constraint.start()
    before = second.allowed()
    first.accept(ids("of")[0])
    assert second.allowed() == before != first.allowed()


def test_a_token_that_was_not_allowed_raises() -> None:
    for said in ("x", "<|endoftext|>", "  "):
        state = make("the world").start()
        with pytest.raises(ValueError, match="does not go on with any part of the text"):
            for token in ids(said):
                state.accept(token)


# Where it stands


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "said", "start"),
    [
        ("Paris is big", " Paris", 0),
        ("Paris is big", "Paris", 0),
        ("in Paris", " Paris", 3),
        ("a\r\nb\r\nc", "b\r\nc", 3),
        ("😀😀x😀", " 😀x", 1),
        ("e\u0301e", " e\u0301", 0),
        ("\U0010ffff\U0001f3f4z", "z", 2),
        ("the cat, the dog, the cat", " the cat", 0),
        ("x<|endoftext|>y", "endoftext", 3),
        ("one  two", "one  two", 0),
        ("ab c", "ab ", 0),
        ("tab\there", "here", 4),
    ],
)
def test_an_answer_is_found_in_characters_without_space_around_it(name: str, text: str, said: str, start: int) -> None:
    assert answer(text, said, name) == ((start, start + len(said.strip())), said.strip())


def test_the_end_of_text_behind_an_answer_is_no_part_of_it() -> None:
    assert answer("the world", " world<|endoftext|>") == ((4, 9), "world")


def test_of_several_places_it_is_the_first_that_cuts_no_word() -> None:
    assert answer("another other", "other")[0] == (2, 7)
    assert answer("another other", "other", whole_words=True)[0] == (8, 13)


def test_an_answer_that_was_cut_loses_what_is_not_whole() -> None:
    first_bytes = [vocabulary_of("tiny").ids(bytes([byte]))[0] for byte in "é😀".encode()[:4]]
    assert make("xé😀").locate(first_bytes) == (1, 2)
    assert make("xé😀").locate(first_bytes[:1]) is None
    assert answer("New York City", "New Yo", whole_words=True)[1] == "New"
    assert answer("New York City", "Ne", whole_words=True)[0] is None
    assert answer("New Yorker New Yo", "New Yo", whole_words=True)[0] == (11, 17)


def test_no_answer_is_an_immediate_end_where_that_is_allowed() -> None:
    constraint = make("the world", allow_none=True)
    assert constraint.start().may_end and not constraint.start().is_complete
    assert constraint.locate(ids("<|endoftext|>")) is None
    assert constraint.locate([]) is None
    assert not make("the world").start().may_end


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("", {}, "is empty"),
        (" \n\u00a0", {}, "is empty"),
        ("immeasurable", {"whole_words": True, "max_chars": 5}, "has no word of at most 5 characters"),
    ],
)
def test_a_text_without_an_answer_is_refused_unless_there_need_be_none(
    text: str, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(RecordError, match=f"the text that the answer is to be taken from {reason}"):
        make(text, **options)
    state = make(text, allow_none=True, **options).start()
    assert state.allowed() == () and state.may_end
