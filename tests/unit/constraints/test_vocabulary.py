import pytest

from gptj_batch.constraints.vocabulary import MAX_LISTED, Vocabulary
from gptj_batch.prompts.tokenizer import END_OF_TEXT

from .walks import NAMES, listed, tokenizer_of

TEXT = "in the news: sports of the world 😀 \u00a0e\u0301 <|endoftext|>".encode()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("before", [b"", b" "])
def test_the_tokens_that_a_text_begins_with_are_those_that_trying_all_finds(name: str, before: bytes) -> None:
    vocabulary = Vocabulary(tokenizer_of(name))
    for start in range(len(TEXT)):
        expected = {
            (start + len(whole) - len(before), token_id)
            for token_id, whole in enumerate(vocabulary.bytes_of)
            if len(whole) > len(before) and (before + TEXT[start:]).startswith(whole)
        }
        found = vocabulary.beginning(TEXT, start, before)
        assert set(found) == expected and len(found) == len(expected)
        assert [stop for stop, _ in found] == sorted(stop for stop, _ in found)


@pytest.mark.parametrize("name", NAMES)
def test_added_tokens_are_no_part_of_a_text(name: str) -> None:
    tokenizer = tokenizer_of(name)
    vocabulary = Vocabulary(tokenizer)
    end = tokenizer.token_id(END_OF_TEXT)
    assert end is not None and vocabulary.bytes_of[end] == b""
    assert vocabulary.ids(END_OF_TEXT.encode()) == ()
    assert all(len(vocabulary.ids(bytes([byte]))) == 1 for byte in range(256))
    assert not any(vocabulary.bytes_of[token] for token in tokenizer.added_token_ids)


@pytest.mark.parametrize("count", [0, 1, MAX_LISTED, MAX_LISTED + 1, 299])
def test_many_tokens_become_a_bit_each_and_few_stay_as_they_are(count: int) -> None:
    allowed = Vocabulary(tokenizer_of("tiny")).compact([*range(count), *range(count)])
    assert isinstance(allowed, bytes) == (count > MAX_LISTED)
    assert listed(allowed) == list(range(count))
