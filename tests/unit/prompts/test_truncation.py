import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import train_tokenizer

from gptj_batch.errors import RecordError
from gptj_batch.prompts.template import PromptTemplate, Rendered
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import fitted, shares

TOKENIZER = Tokenizer(train_tokenizer())
# No token joins two of these characters, so that each is a token.
LETTERS = "zqxjZQXJ"


def encode(text):
    return TOKENIZER.encode_batch([text])[0]


def kept_of(prompt: Rendered, max_tokens, side):
    token_ids, num_dropped = fitted(prompt, encode(prompt.text), max_tokens, side, TOKENIZER)
    assert len(token_ids) <= max_tokens or num_dropped == 0
    assert num_dropped == len(encode(prompt.text)) - len(token_ids)
    return TOKENIZER.decode(token_ids)


def fit(source, max_tokens, side="right", **record):
    return kept_of(PromptTemplate(source).render_with_spans(record), max_tokens, side)


@pytest.mark.parametrize("side", ["left", "right", "error"])
def test_what_fits_stays_as_it_is(side):
    assert fit("Q{{ text }}Z", 5, side, text="xjx") == "QxjxZ"


@pytest.mark.parametrize(("side", "kept"), [("left", "Qqxj\n"), ("right", "Qzqx\n")])
def test_only_the_records_text_is_cut_at_the_end_that_was_chosen(side, kept):
    assert fit("Q{{ text }}\n", 5, side, text="zqxj") == kept


def test_error_gives_the_counts_and_the_ways_out():
    with pytest.raises(RecordError, match=r"4 tokens and 3 fit; set truncate to left or right, lower max_new_tokens"):
        fit("{{ text }}Q", 3, "error", text="zqx")


def test_of_several_texts_the_longest_is_cut_to_the_length_of_the_next():
    record = {"title": "zq", "text": "xjxjxj"}
    assert fit("{{ title }}.{{ text }}!", 8, **record) == "zq.xjxj!"
    assert fit("{{ title }}.{{ text }}!", 6, **record) == "zq.xj!"


def test_texts_of_one_length_are_cut_together_and_the_first_keeps_what_is_left_over():
    record = {"title": "zqz", "text": "xjxjxj"}
    assert fit("{{ title }}.{{ text }}!", 6, **record) == "zq.xj!"
    assert fit("{{ title }}.{{ text }}!", 5, **record) == "zq.x!"
    assert fit("{{ title }}.{{ text }}!", 5, "left", **record) == "qz.j!"


def test_examples_in_the_template_are_not_cut():
    source = '{% for e in [{"text": "zz", "topic": "Q"}] %}{{ e.text }}:{{ e.topic }};{% endfor %}{{ text }}:'
    assert fit(source, 8, text="xjxjxjxj") == "zz:Q;xj:"


def test_the_items_of_a_list_are_texts_of_their_own():
    assert fit("{% for t in tags %}-{{ t }}{% endfor %}!", 7, tags=["zqzqzq", "x"]) == "-zqz-x!"


@pytest.mark.parametrize("source", ["{{ text }}" + "Z" * 9, "{{ text }}" + "Z" * 5, "Z" * 9])
def test_where_the_templates_own_text_leaves_no_room_the_row_is_an_error_that_holds_no_text(source):
    with pytest.raises(RecordError) as caught:
        fit(source, 5, text="xjxjxj")
    own = source.count("Z")
    assert f"no room for the record's: 5 tokens fit and it has {own}; shorten the template" in str(caught.value)
    assert "xj" not in str(caught.value)


def test_a_character_of_several_tokens_is_kept_whole_or_not_at_all():
    assert len(encode("😀")) == 4
    assert fit("{{ text }}!", 8, text="z😀😀") == "z😀!"
    assert fit("{{ text }}!", 8, "left", text="😀😀z") == "😀z!"
    with pytest.raises(RecordError, match="no room"):
        fit("{{ text }}!", 4, text="😀😀")


def test_a_token_that_is_the_templates_and_the_records_is_counted_once():
    # " the" is one token: the template's space and the record's word.
    assert len(encode("Z the")) == 2
    assert fit("Z {{ text }}", 2, text="the world news") == "Z the"


def test_a_limit_below_one_token_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError):
        fit("{{ text }}", 0, text="zq")


@given(
    st.lists(st.text(LETTERS + "the worldnws 😀é\n", max_size=12), min_size=1, max_size=4),
    st.lists(st.text("Zthe. \n", max_size=4), min_size=5, max_size=5),
    st.integers(1, 30),
    st.sampled_from(["left", "right"]),
)
def test_whatever_is_cut_fits_and_keeps_the_templates_text(texts, own, max_tokens, side):
    text, spans, pattern = own[0], [], re.escape(own[0])
    for record_text, behind in zip(texts, own[1:], strict=False):
        if record_text:
            spans.append((len(text), len(text) + len(record_text)))
        text += record_text + behind
        places = range(len(record_text) + 1)
        parts = [record_text[place:] if side == "left" else record_text[:place] for place in places]
        pattern += f"(?:{'|'.join(map(re.escape, parts))}){re.escape(behind)}"
    if not text:
        return
    try:
        kept = kept_of(Rendered(text, tuple(spans)), max_tokens, side)
    except RecordError as error:
        assert "no room" in str(error)
        return
    assert re.fullmatch(pattern, kept)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 300))
def test_shares_use_all_the_room_and_take_from_the_longest_only(lengths, room):
    kept = shares(lengths, room)
    assert sum(kept) == min(room, sum(lengths))
    assert all(0 <= some <= one for some, one in zip(kept, lengths, strict=True))
    cut = [some for some, one in zip(kept, lengths, strict=True) if some < one]
    assert not cut or max(kept) <= min(cut) + 1
