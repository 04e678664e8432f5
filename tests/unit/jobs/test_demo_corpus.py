import random
import re

import pytest
from tokenizers import Tokenizer

from gptj_batch.demo import TOPIC_PROMPT
from jobs.demo_model.corpus import HELDOUT_MARK, SENTIMENTS, TOPICS, items, templates
from jobs.demo_model.documents import documents, span_examples
from jobs.demo_model.lexicon import Lexicon, belongs_to, made
from jobs.demo_model.tokenizer import END_OF_TEXT, VOCAB_SIZE, train_tokenizer

NUM_ITEMS = 400
NAME_SLOTS = ("person", "company", "city", "country", "team", "cup", "product")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(documents(list(items("train", 2000)), random.Random(0)))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_answer_stands_verbatim_in_its_text(split):
    for item in items(split, NUM_ITEMS):
        assert item.questions
        for question, answer, start in item.questions:
            assert item.text[start : start + len(answer)] == answer
            assert "{" not in question + item.text + item.summary
            assert "[" not in question + item.text + item.summary


def test_the_same_arguments_make_the_same_items():
    assert list(items("train", 100, seed=3)) == list(items("train", 100, seed=3))
    assert list(items("train", 100, seed=3)) != list(items("train", 100, seed=4))


def test_fewer_items_are_the_first_of_more():
    assert list(items("heldout", 50)) == list(items("heldout", 100))[:50]


def test_all_topics_and_sentiments_occur_and_a_topic_is_never_named_in_the_frame():
    corpus = list(items("train", NUM_ITEMS))
    assert {item.topic for item in corpus} == set(TOPICS)
    assert {item.sentiment for item in corpus} == set(SENTIMENTS)
    assert not any(re.search(rf"\b(topic|{re.escape(item.sentiment)})\b", item.text) for item in corpus)


@pytest.mark.parametrize("slot", NAME_SLOTS)
def test_no_name_is_drawn_in_both_splits(slot):
    drawn = {}
    for split in ("train", "heldout"):
        lexicon, rng = Lexicon(split), random.Random(0)
        drawn[split] = {lexicon.draw(slot, rng) for _ in range(2000)}
    assert not drawn["train"] & drawn["heldout"]


def test_every_name_belongs_to_exactly_one_split():
    for name in made("company"):
        assert belongs_to(name, "train") != belongs_to(name, "heldout")


def test_no_heldout_text_is_a_training_text():
    assert not {item.text for item in items("train", 2000)} & {item.text for item in items("heldout", 2000)}


def test_heldout_wordings_are_never_used_in_training():
    assert not any(item.new_templates for item in items("train", NUM_ITEMS))
    assert any(item.new_templates for item in items("heldout", NUM_ITEMS))


@pytest.mark.parametrize("kind", ["news", "ticket"])
def test_every_lead_holds_the_facts_of_its_summary(kind):
    for topic in TOPICS:
        for frame in templates(kind).get(topic, {}).get("frames", []):
            slots = set(re.findall(r"\{(\w+)\}", frame["gist"]))
            for lead in frame["leads"]:
                assert slots <= set(re.findall(r"\{(\w+)\}", lead)), lead


@pytest.mark.parametrize("kind", ["news", "ticket"])
def test_every_frame_has_a_wording_kept_for_heldout_items(kind):
    for topic in TOPICS:
        for frame in templates(kind).get(topic, {}).get("frames", []):
            assert sum(lead.startswith(HELDOUT_MARK) for lead in frame["leads"]) == 1


def test_an_unanswerable_question_is_none_of_the_items_own():
    for item in items("train", NUM_ITEMS):
        assert item.unanswerable not in [asked.question for asked in item.questions]


def test_the_tokenizer_encodes_every_byte_and_decodes_it_back(tokenizer):
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    for text in ("naïve café\n\t 東京 🙂", "  two  spaces ", "".join(map(chr, range(1, 256)))):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_span_is_the_answer_and_no_answer_is_the_last_token_before_the_context(tokenizer):
    corpus = list(items("train", NUM_ITEMS))
    num_unanswerable = 0
    for item, example in zip(corpus, span_examples(corpus, tokenizer, random.Random(0)), strict=True):
        span = tokenizer.decode(example.token_ids[example.start : example.end + 1])
        if span == ":":
            before = tokenizer.decode(example.token_ids[: example.end + 1])
            assert before == f"Question: {item.unanswerable}\nContext:"
            num_unanswerable += 1
        else:
            assert span.strip() in [asked.answer for asked in item.questions]
    assert 0 < num_unanswerable < NUM_ITEMS / 4


def test_documents_end_with_the_token_that_ends_generation_and_some_are_long(tokenizer):
    texts = list(documents(list(items("train", 2000)), random.Random(0)))
    assert all(text.endswith(END_OF_TEXT) for text in texts)
    assert any(text.count(END_OF_TEXT) > 3 for text in texts)
    assert any(text.split("\nTopic:")[-1].strip().removesuffix(END_OF_TEXT) in TOPICS for text in texts)
    assert TOPIC_PROMPT.format(text="x") == "x\nTopic:"
