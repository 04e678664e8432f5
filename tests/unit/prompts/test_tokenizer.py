import json
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from gptj_batch.errors import CheckpointError
from gptj_batch.prompts.tokenizer import END_OF_TEXT, Tokenizer

GPT2 = Path(__file__).parents[4] / "shared" / "gpt2-bpe"
GPTJ_VOCAB_SIZE = 50_400
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
HARD_TEXTS = [
    "",
    " ",
    "Hello, my dog is cute",
    "  leading and trailing  \n\n",
    "don't WE'LL 123,456.78",
    "e\u0301 = é; \u00a0\u2028 nbsp",
    "日本語のテキスト العربية हिन्दी",
    "😀👨\u200d👩\u200d👧 \U0001f3f4\U000e0067 \U0010ffff",
    "tab\tnull\x00bell\x07",
    f"a{END_OF_TEXT}b {END_OF_TEXT}",
    "<|extratoken_1|>x<|extratoken_143|>",
    "ĠĊ looks like the alphabet",
]


def write_byte_level(folder: Path, *merged: str) -> Path:
    """A vocabulary of the 256 bytes, the end of text, and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(pair.replace(" ", "") for pair in merged), END_OF_TEXT]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in merged))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(write_byte_level(tmp_path_factory.mktemp("small"), "l l", "h e", "he ll"))


@pytest.fixture(scope="module")
def gptj() -> Tokenizer:
    if not GPT2.is_dir():
        pytest.skip(f"{GPT2} is not there")
    return Tokenizer.from_vocab_files(GPT2 / "vocab.json", GPT2 / "merges.txt", GPTJ_VOCAB_SIZE)


@pytest.fixture(scope="module")
def transformers_gptj(gptj):
    """GPT-J's tokenizer as transformers builds it."""
    transformers = pytest.importorskip("transformers")
    oracle = transformers.GPT2TokenizerFast(vocab=str(GPT2 / "vocab.json"), merges=str(GPT2 / "merges.txt"))
    oracle.add_tokens([f"<|extratoken_{index}|>" for index in range(1, 144)])
    return oracle


def test_a_folder_with_vocabulary_and_merges_is_enough(small):
    assert small.vocab_size == 256 + 3 + 1 and small.token_id(END_OF_TEXT) == 259
    (ids,) = small.encode_batch(["hello"])
    assert [small.token_bytes(token_id) for token_id in ids] == [b"hell", b"o"]


def test_the_vocab_size_of_the_config_is_filled_up_in_order(tmp_path):
    write_byte_level(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 260, "model_type": "gptj"}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == 260
    assert [tokenizer.token_id(f"<|extratoken_{i}|>") for i in (1, 2, 3)] == [257, 258, 259]


def test_added_tokens_are_honoured_and_leave_fewer_to_fill_up(tmp_path):
    write_byte_level(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|b|>": 258, "<|a|>": 257}))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 260}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode_batch(["<|a|><|b|><|extratoken_1|>"]) == [[257, 258, 259]]


def test_a_tokenizer_json_comes_first_and_is_taken_as_it_is(tmp_path, small):
    write_byte_level(tmp_path)
    (tmp_path / "tokenizer.json").write_text(small._backend.to_str())
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 500}))
    loaded = Tokenizer.from_folder(tmp_path)
    assert loaded.fingerprint == small.fingerprint and loaded.vocab_size == small.vocab_size


def test_truncation_padding_and_special_tokens_of_a_tokenizer_json_are_never_applied(tmp_path, small):
    backend = Backend.from_str(small._backend.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    end = (END_OF_TEXT, backend.token_to_id(END_OF_TEXT))
    backend.post_processor = processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[end])
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_folder(tmp_path)
    assert loaded.encode_batch(["hello there", "a"]) == small.encode_batch(["hello there", "a"])
    assert loaded.encode_with_offsets("hello a") == small.encode_with_offsets("hello a")


def test_the_literal_end_of_text_becomes_its_token(small):
    end = small.token_id(END_OF_TEXT)
    (ids,) = small.encode_batch([f"a{END_OF_TEXT}b"])
    assert ids[1] == end and len(ids) == 3
    assert small.decode(ids) == f"a{END_OF_TEXT}b" and small.decode(ids, skip_special_tokens=True) == "ab"


def test_a_batch_of_nothing_is_nothing(small):
    assert small.encode_batch([]) == [] and small.encode_batch([""]) == [[]]
    assert small.decode([]) == "" and small.encode_with_offsets("") == ([], [])


def test_bytes_that_are_no_text_become_replacement_characters(small):
    (ids,) = small.encode_batch(["é"])
    assert small.decode(ids[:1]) == "\ufffd" and small.token_bytes(ids[0]) == "é".encode()[:1]


def test_an_id_without_a_token_has_no_bytes_and_no_text(small):
    assert small.token_bytes(10_000) == b"" and small.decode([10_000]) == "" and small.token_id("nope") is None


def test_a_tokenizer_can_be_sent_to_a_worker(small):
    sent = pickle.loads(pickle.dumps(small))
    assert sent.fingerprint == small.fingerprint and sent.encode_batch(["hello"]) == small.encode_batch(["hello"])


def test_the_fingerprint_tells_tokenizers_apart(tmp_path, small):
    write_byte_level(tmp_path / "other", "l l")
    write_byte_level(tmp_path / "same", "l l", "h e", "he ll")
    assert Tokenizer.from_folder(tmp_path / "other").fingerprint != small.fingerprint
    assert Tokenizer.from_folder(tmp_path / "same").fingerprint == small.fingerprint


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: .*tokenizer\.json, then for vocab\.json with merges\.txt"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", ""),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[1, 2"),
        ("vocab.json", "{"),
        ("vocab.json", "[]"),
        ("vocab.json", '{"a": 0}'),
        ("merges.txt", "#version: 0.2\nx yz q\n"),
        ("merges.txt", "#version: 0.2\nnot there\n"),
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"vocab_size": "many"}'),
        ("config.json", '{"vocab_size": 99999999999}'),
        ("added_tokens.json", '{"<|a|>": 900}'),
        ("added_tokens.json", '{"<|a|>": null}'),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    write_byte_level(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_with_a_gap_is_refused(tmp_path):
    vocab = json.loads((write_byte_level(tmp_path) / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {END_OF_TEXT: 300}))
    with pytest.raises(CheckpointError, match="have a gap"):
        Tokenizer.from_folder(tmp_path)


def test_a_byte_without_a_token_is_refused_since_text_would_lose_it(tmp_path):
    vocab = json.loads((write_byte_level(tmp_path) / "vocab.json").read_text())
    del vocab["ÿ"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocab)}))
    with pytest.raises(CheckpointError, match="1 of the 256 bytes have no token"):
        Tokenizer.from_folder(tmp_path)


def test_a_tokenizer_that_is_not_byte_level_has_no_bytes_for_tokens(tmp_path):
    Backend(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode_batch(["a"]) == [[0]]
    with pytest.raises(CheckpointError, match="not byte-level"):
        tokenizer.token_bytes(0)


@given(TEXTS)
def test_every_text_comes_back(small, text):
    (ids,) = small.encode_batch([text])
    assert small.decode(ids) == text
    assert b"".join(map(small.token_bytes, ids)) == text.encode()


@given(TEXTS)
def test_offsets_are_the_characters_that_a_token_holds_a_part_of(small, text):
    ids, offsets = small.encode_with_offsets(text)
    assert ids == small.encode_batch([text])[0]
    starts = [len(text[:index].encode()) for index in range(len(text) + 1)]
    first = 0
    for token_id, (start, end) in zip(ids, offsets, strict=True):
        last = first + len(small.token_bytes(token_id))
        assert starts[start] <= first and last <= starts[end], "the characters hold the bytes"
        assert start + 1 == end or (starts[start + 1] > first and starts[end - 1] < last), "and no more than need be"
        first = last


@given(TEXTS)
def test_a_token_lies_within_its_word_and_words_do_not_overlap(small, text):
    ids, offsets, words = small.encode_with_words(text)
    assert (ids, offsets) == small.encode_with_offsets(text)
    assert all(first <= start and end <= last for (start, end), (first, last) in zip(offsets, words, strict=True))
    distinct = sorted(set(words))
    assert all(left[1] <= right[0] for left, right in pairwise(distinct))


def test_words_are_what_a_text_is_cut_into_before_there_are_tokens(small):
    text = "xyzzy don't  12?!"
    words = dict.fromkeys(small.encode_with_words(text)[2])
    assert [text[start:end] for start, end in words] == ["xyzzy", " don", "'t", " ", " 12", "?!"]


def test_gptj_has_its_50400_tokens_in_order(gptj):
    assert gptj.vocab_size == GPTJ_VOCAB_SIZE and gptj.token_id(END_OF_TEXT) == 50_256
    assert [gptj.token_id(f"<|extratoken_{i}|>") for i in (1, 143)] == [50_257, 50_399]
    assert gptj.encode_batch(["Hello, my dog is cute"]) == [[15496, 11, 616, 3290, 318, 13779]]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_gptj_has_the_ids_offsets_and_texts_of_transformers(gptj, transformers_gptj, text):
    expected = transformers_gptj(text, return_offsets_mapping=True)
    ids, offsets = gptj.encode_with_offsets(text)
    assert ids == gptj.encode_batch([text])[0] == expected["input_ids"]
    assert offsets == expected["offset_mapping"]
    assert gptj.decode(ids) == transformers_gptj.decode(ids) == text
    assert gptj.decode(ids, True) == transformers_gptj.decode(ids, skip_special_tokens=True)


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_gptj_has_the_ids_of_transformers_for_any_text(gptj, transformers_gptj, text):
    (ids,) = gptj.encode_batch([text])
    assert ids == transformers_gptj(text)["input_ids"]
    assert gptj.decode(ids) == text


def test_a_folder_reads_as_auto_tokenizer_reads_it(gptj, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((GPT2 / name).read_bytes())
    added = {f"<|extratoken_{index}|>": 50_256 + index for index in range(1, 144)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gptj", "vocab_size": GPTJ_VOCAB_SIZE}))
    ours, theirs = Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.fingerprint == gptj.fingerprint
    for text in HARD_TEXTS:
        assert ours.encode_batch([text])[0] == theirs(text)["input_ids"], text
    theirs.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    saved = Tokenizer.from_folder(tmp_path / "saved")
    assert saved.encode_batch(HARD_TEXTS) == ours.encode_batch(HARD_TEXTS)
