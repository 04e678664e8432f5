import json
import math
import pickle
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_tokenizer import train_tokenizer
from tokenizers import models, pre_tokenizers

from gptj_batch.backends.fake import FakeBackend
from gptj_batch.errors import CheckpointError, ConfigError, RecordError
from gptj_batch.prompts.tokenizer import END_OF_TEXT, Tokenizer
from gptj_batch.requests import Request, SamplingParams
from gptj_batch.results import Generated
from gptj_batch.tasks.base import Encoded
from gptj_batch.tasks.generate import GenerateSettings, GenerateTask, row_seed
from gptj_batch.tasks.stop_strings import StopStrings

TOKENIZER = Tokenizer(train_tokenizer())
ID_OF = {TOKENIZER.token_bytes(token_id): token_id for token_id in range(TOKENIZER.vocab_size)}
END = TOKENIZER.token_id(END_OF_TEXT)
TOKENS = st.lists(st.integers(0, TOKENIZER.vocab_size - 1).filter(lambda token_id: token_id != END), max_size=30)


def task(**settings: Any) -> GenerateTask:
    return GenerateTask(GenerateSettings.model_validate({"kind": "generate", "prompt": "{{ text }}", **settings}))


def ids(*tokens: bytes) -> list[int]:
    """Ids of tokens given by their bytes."""
    return [ID_OF[token] for token in tokens]


def generated(token_ids: Sequence[int], reason: Any = "length", logprobs: tuple[float, ...] | None = None) -> Generated:
    return Generated(
        key="k#0", token_ids=tuple(token_ids), finish_reason=reason, num_prompt_tokens=5, logprobs=logprobs
    )


def columns(of: GenerateTask, rows: Sequence[Sequence[Generated] | None]) -> dict[str, list[Any]]:
    """What the rows' results become, by way of the Arrow array that they travel in."""
    raw = pa.array([None if row is None else of.pack(row) for row in rows], type=of.raw_type)
    arrays = of.columns(raw.to_pylist(), [None] * len(raw), TOKENIZER)
    assert [array.type for array in arrays] == [field.type for field in of.adds]
    return {field.name: array.to_pylist() for field, array in zip(of.adds, arrays, strict=True)}


def text_of(of: GenerateTask, token_ids: Sequence[int], reason: str = "stop") -> str:
    text: str = columns(of, [[generated(token_ids, reason)]])["generated_text"][0]
    return text


# Settings


def test_without_settings_it_is_greedy_and_of_64_tokens() -> None:
    (request,) = task().request_maker(TOKENIZER).requests("k", [1, 2])
    assert isinstance(request, Request)
    assert request.sampling == SamplingParams(max_new_tokens=64, temperature=0.0, seed=row_seed(0, "k", 0))
    assert request.stop is None and list(request.prompt_token_ids) == [1, 2]


def test_every_setting_of_sampling_reaches_the_request() -> None:
    given_settings: dict[str, Any] = {
        "max_new_tokens": 7, "min_new_tokens": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1,
        "repetition_penalty": 1.5, "logprobs": True,
    }  # fmt: skip
    (request,) = task(**given_settings, seed=4).request_maker(TOKENIZER).requests("k", [1])
    assert isinstance(request, Request)
    assert request.sampling == SamplingParams(**given_settings, seed=row_seed(4, "k", 0))


def test_every_setting_of_beam_search_reaches_the_request() -> None:
    given_settings: dict[str, Any] = {"num_beams": 4, "length_penalty": 0.5, "early_stopping": "never"}
    (request,) = task(**given_settings).request_maker(TOKENIZER).requests("k", [1])
    assert isinstance(request, Request)
    assert request.sampling == SamplingParams(**given_settings, seed=row_seed(0, "k", 0))


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"max_new_tokens": 0}, "greater than or equal to 1"),
        ({"num_beams": 0}, "greater than or equal to 1"),
        ({"length_penalty": math.inf}, "less than or equal to 10"),
        ({"early_stopping": "always"}, "early_stopping"),
        ({"num_beams": 4, "num_samples": 2}, r"num_samples \(2\) and num_beams \(4\) are both above 1"),
        ({"num_beams": 4, "regex": "a+"}, r"num_beams \(4\) above 1 cannot be held to regex"),
        ({"num_beams": 4, "temperature": 0.5}, r"num_beams \(4\) above 1 needs temperature 0, got 0.5"),
        ({"min_new_tokens": -1}, "greater than or equal to 0"),
        ({"min_new_tokens": 65}, r"min_new_tokens \(65\) is above max_new_tokens \(64\)"),
        ({"temperature": -0.1}, "greater than or equal to 0"),
        ({"temperature": math.inf}, "finite"),
        ({"temperature": math.nan}, "finite|greater"),
        ({"top_k": -1}, "greater than or equal to 0"),
        ({"top_p": 0.0}, "greater than 0"),
        ({"top_p": 1.1}, "less than or equal to 1"),
        ({"top_p": math.nan}, "less than or equal to 1"),
        ({"min_p": -0.1}, "greater than or equal to 0"),
        ({"min_p": 1.1}, "less than or equal to 1"),
        ({"repetition_penalty": 0.0}, "greater than 0"),
        ({"repetition_penalty": math.inf}, "finite"),
        ({"stop": [""]}, "an empty text would stop every generation at once; remove it"),
        ({"stop": ["a", 1]}, "valid string"),
        ({"num_samples": 0}, "greater than or equal to 1"),
        ({"num_samples": 2}, "num_samples above 1 needs a temperature above 0"),
        ({"num_samples": 2000, "temperature": 1.0}, "less than or equal to 1024"),
        ({"seed": 1.5}, "valid integer"),
        ({"logprobs": 1}, "valid boolean"),
        ({"settings_column": ""}, "at least 1 character"),
        ({"deduplicate": "yes"}, "valid boolean"),
        ({"truncate": "middle"}, "'left', 'right' or 'error'"),
        ({"prompt": ""}, "at least 1 character"),
        ({"best_of": 3}, "Extra inputs"),
        ({"choices": []}, "at least 1 item"),
        ({"choices": ["a", ""]}, "must not be empty"),
        ({"choices": ["a", "a"]}, "nor stand there twice"),
        ({"choices": ["a", 1]}, "valid string"),
        ({"regex": ""}, "at least 1 character"),
        ({"json_schema": 3}, "valid"),
        ({"choices": ["a"], "regex": "a"}, "choices and regex are both set; a text is held to one of them"),
        ({"json_schema": {}, "regex": "a"}, "regex and json_schema are both set"),
        ({"json_schema": {}, "stop": ["a"]}, "stop would cut the text that json_schema describes"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rule(setting: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        task(**setting)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_new_tokens": st.integers(-1, 100),
            "min_new_tokens": st.integers(-1, 100),
            "temperature": st.floats(-0.1, 3),
            "top_k": st.integers(-1, 5),
            "top_p": st.floats(-0.1, 1.1),
            "min_p": st.floats(-0.1, 1.1),
            "repetition_penalty": st.floats(-0.1, 3),
            "seed": st.integers(-(2**70), 2**70),
        },
    )
)
def test_settings_that_are_taken_make_requests_that_the_engine_takes(settings: dict[str, Any]) -> None:
    try:
        made = task(**settings)
    except ValidationError:
        return
    assert made.request_maker(TOKENIZER).requests("k", [1])


def test_one_stop_may_be_written_without_a_list() -> None:
    assert task(stop="END").settings.stop == task(stop=["END"]).settings.stop == ("END",)


# The prompt


def test_the_template_names_the_columns_that_are_read() -> None:
    made = task(prompt="{{ title }}: {{ text }}")
    assert made.reads == {"title", "text"}
    assert made.prompt({"title": "a", "text": "b"}) == "a: b"
    with pytest.raises(ConfigError, match=r'task\.prompt: the input has no column "text"\. Did you mean "txt"'):
        made.check_columns(["title", "txt"])


def test_a_row_that_cannot_be_rendered_is_its_own_error() -> None:
    with pytest.raises(RecordError, match='column "text" is null'):
        task().prompt({"text": None})


def test_a_template_whose_own_text_does_not_fit_is_refused_before_the_first_row() -> None:
    made = task(prompt="q" * 60 + "{{ text }}", max_new_tokens=8)
    assert made.encoder(TOKENIZER, 68)
    with pytest.raises(
        ConfigError, match=r"^task\.prompt: the template's own text has 60 tokens and 59 fit, .* less 8"
    ):
        made.encoder(TOKENIZER, 67)


def test_the_new_tokens_must_fit_behind_the_prompt() -> None:
    assert task(max_new_tokens=9).request_maker(TOKENIZER).reserved_tokens == 9
    assert task(truncate="left").settings.truncate == "left"


# A row's own settings


def own(column: Any, max_context_tokens: int = 64, **settings: Any) -> tuple[GenerateTask, Encoded | RecordError]:
    made = task(settings_column="options", **{"max_new_tokens": 8, **settings})
    (encoded,) = made.encoder(TOKENIZER, max_context_tokens)([{"text": "q" * 50, "options": column}])
    return made, encoded


def request_of(column: Any, **settings: Any) -> Request:
    made, encoded = own(column, **settings)
    assert isinstance(encoded, Encoded)
    notes = pa.array([encoded.notes], type=made.notes_type).to_pylist()[0]
    (request,) = made.request_maker(TOKENIZER).requests("k", encoded.token_ids, notes)
    assert isinstance(request, Request)
    return request


def test_a_row_may_set_how_it_is_generated() -> None:
    changes: dict[str, Any] = {
        "max_new_tokens": 5, "min_new_tokens": 1, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1,
        "repetition_penalty": 1.5,
    }  # fmt: skip
    expected = SamplingParams(**changes, seed=row_seed(9, "k", 0))
    for column in ({**changes, "seed": 9}, json.dumps({**changes, "seed": 9})):
        assert request_of(column).sampling == expected


@pytest.mark.parametrize("column", [None, {}, "{}", {"top_k": None, "stop": None}, "null"])
def test_what_a_row_does_not_set_is_the_jobs(column: Any) -> None:
    assert request_of(column, temperature=0.5, stop=["END"]).sampling == SamplingParams(
        max_new_tokens=8, temperature=0.5, seed=row_seed(0, "k", 0)
    )


def test_a_rows_stop_ends_and_cuts_its_text_only() -> None:
    made, encoded = own({"stop": ["world"]}, stop=["the"])
    assert isinstance(encoded, Encoded)
    request = request_of({"stop": ["world"]}, stop=["the"])
    assert request.stop is not None and request.stop(ids(b"the", b" world"))
    raw = pa.array([made.pack([generated(ids(b"the", b" world"), "stop")])] * 2, type=made.raw_type).to_pylist()
    texts = made.columns(raw, [encoded.notes, "{}"], TOKENIZER)[0].to_pylist()
    assert texts == ["the ", "the world"]  # the second was not ended by the job's stop


def test_rows_with_the_same_stop_share_one_condition() -> None:
    maker = task(settings_column="options").request_maker(TOKENIZER)
    first, second = (maker.requests(key, [1], '{"stop": ["x"]}')[0] for key in "ab")
    assert isinstance(first, Request) and isinstance(second, Request)
    assert first.stop is second.stop


def test_room_is_kept_for_the_new_tokens_of_the_row_itself() -> None:
    assert isinstance(own({"max_new_tokens": 14})[1], Encoded)
    error = own({"max_new_tokens": 15})[1]
    assert isinstance(error, RecordError) and "the prompt has 50 tokens and 49 fit" in str(error)
    cut = own({"max_new_tokens": 15}, truncate="left")[1]
    assert isinstance(cut, Encoded) and (len(cut.token_ids), cut.num_dropped_tokens) == (49, 1)


@pytest.mark.parametrize(
    ("column", "settings", "rule"),
    [
        ({"max_new_tokens": 0}, {}, "max_new_tokens must be greater than or equal to 1"),
        ({"max_new_tokens": 64}, {}, "max_new_tokens must be at most 63, the model's context less one token"),
        ({"max_new_tokens": 5.5}, {}, "max_new_tokens must be a valid integer"),
        ({"max_new_tokens": 1}, {"choices": ["qqqq"]}, "max_new_tokens must be at least 5, the tokens of the longest"),
        ({"min_new_tokens": 9}, {}, r"min_new_tokens \(9\) is above max_new_tokens \(8\)"),
        ('{"temperature": -1}', {}, "temperature must be greater than or equal to 0"),
        ('{"temperature": NaN}', {}, "temperature must be (a finite|greater)"),
        ({"temperature": "SECRET"}, {}, "temperature must be a valid number"),
        ({"temperature": 0.0}, {"temperature": 1.0, "num_samples": 2}, "num_samples above 1 needs a temperature above"),
        ({"top_p": 0.0}, {}, "top_p must be greater than 0"),
        ({"stop": ["SECRET", ""]}, {}, "stop an empty text would stop every generation at once"),
        ({"stop": ["SECRET"]}, {"regex": "a+"}, "stop would cut the text that regex describes"),
        ({"seed": True}, {}, "seed must be a valid integer"),
        ({"max_tokens": 3}, {}, 'no setting "max_tokens" of a row; did you mean max_new_tokens\\?; a row may set max_'),
        ({"num_samples": 3}, {}, 'no setting "num_samples" of a row; a row may set max_new_tokens, min_new_tokens'),
        ({"SECRET text": 3}, {}, "no setting has a name like that of 11 characters"),
        ("SECRET", {}, "the text is not JSON; write an object"),
        ("[" * 100_000, {}, "the text is not JSON; write an object"),
        ('["SECRET"]', {}, "must be a struct or a JSON object, got a list"),
        (7, {}, "must be a struct or a JSON object, got a int"),
    ],
)  # fmt: skip
def test_what_a_row_cannot_set_is_its_error_with_key_and_rule_and_no_text(
    column: Any, settings: dict[str, Any], rule: str
) -> None:
    error = own(column, **settings)[1]
    assert isinstance(error, RecordError)
    assert re.search(rf'^column "options" \(task\.settings_column\): {rule}', str(error))
    assert "SECRET" not in str(error)


def test_whole_numbers_that_pandas_made_floats_are_taken() -> None:
    assert request_of({"max_new_tokens": 5.0, "top_k": 2.0}).sampling.max_new_tokens == 5


def test_one_rows_bad_settings_leave_the_others_alone() -> None:
    made = task(settings_column="options", max_new_tokens=8)
    rows = [{"text": "q", "options": column} for column in ({"top_p": 2.0}, {"top_p": 0.5}, None)]
    encoded = made.encoder(TOKENIZER, 64)([RecordError("column is bad"), *rows])
    assert [isinstance(row, Encoded) for row in encoded] == [False, False, True, True]
    assert str(encoded[0]) == "column is bad"


def test_the_column_of_settings_is_read_and_must_be_there() -> None:
    made = task(settings_column="options")
    assert made.reads == {"text", "options"}
    with pytest.raises(ConfigError, match=r'^task\.settings_column: the input has no column "options"\. Did you mean'):
        made.check_columns(["text", "option"])


def test_a_tokenizer_without_bytes_cannot_serve_rows_that_may_have_stops() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(CheckpointError, match="not byte-level"):
        task(settings_column="options").request_maker(Tokenizer(words))


# Samples and seeds


def test_a_row_has_a_request_a_sample_each_with_its_own_seed() -> None:
    requests = task(num_samples=5, temperature=1.0).request_maker(TOKENIZER).requests("k", [1])
    assert [request.key for request in requests] == ["k#0", "k#1", "k#2", "k#3", "k#4"]
    assert len({request.sampling.seed for request in requests if isinstance(request, Request)}) == 5


@pytest.mark.parametrize(
    ("seed", "key", "sample", "expected"),
    [
        (0, "a", 0, 8306449620586865205),
        (0, "a", 1, 636408301999875294),
        (1, "a", 0, 8831399460148815494),
        (0, "news.parquet:17", 0, 4326559110032519992),
        (-5, "é😀", 3, 6513645894086589318),
        (0, "", 0, 4648431154159738345),
    ],
)
def test_the_seed_of_a_row_is_the_same_for_ever(seed: int, key: str, sample: int, expected: int) -> None:
    assert row_seed(seed, key, sample) == expected


def test_seeds_of_samples_and_of_rows_are_spread_evenly() -> None:
    seeds = [row_seed(0, f"f.parquet:{row}", sample) for row in range(500) for sample in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        share = sum(seed >> bit & 1 for seed in seeds) / len(seeds)
        assert 0.45 < share < 0.55, f"bit {bit} is set in {share:.0%}"


@given(st.integers(-3, 30), st.text("a\x001", max_size=4), st.integers(0, 30))
def test_no_two_rows_share_a_seed_by_how_they_are_written(seed: int, key: str, sample: int) -> None:
    assert row_seed(seed, key, sample) != row_seed(seed, f"{key}\x001", sample)
    assert row_seed(seed, key, sample) != row_seed(seed, key, sample + 1)


# Stop texts


def test_a_stop_is_found_across_the_borders_of_tokens() -> None:
    stop = StopStrings(["world news"], TOKENIZER)
    tokens = ids(b"the", b" world", b" news")
    assert [stop(tokens[:n]) for n in range(1, 4)] == [False, False, True]


def test_a_stop_may_begin_inside_one_token_and_end_inside_another() -> None:
    made = task(stop=["ld ne"])
    tokens = ids(b"the", b" world", b" news")
    assert StopStrings(["ld ne"], TOKENIZER)(tokens)
    assert text_of(made, tokens) == "the wor"


def test_a_stop_may_lie_inside_a_single_token() -> None:
    assert StopStrings(["orl"], TOKENIZER)(ids(b" world"))
    assert text_of(task(stop=["orl"]), ids(b" world")) == " w"


def test_a_stop_of_several_bytes_a_character_is_found_when_its_last_byte_is_there() -> None:
    stop = StopStrings(["é😀"], TOKENIZER)
    tokens = ids(b"a", *(bytes([byte]) for byte in "é😀".encode()))
    assert [stop(tokens[:n]) for n in range(1, len(tokens) + 1)] == [False] * 6 + [True]
    assert text_of(task(stop=["é😀"]), tokens) == "a"


def test_a_cut_character_before_a_stop_stays_one_replacement_character() -> None:
    assert text_of(task(stop=["a"]), ids(b"\xf0", b"\x9f", b"a")) == "\ufffd"


def test_a_stop_that_is_the_replacement_character_is_not_found_in_cut_ones() -> None:
    tokens = ids(b"\xf0", b"a", *(bytes([byte]) for byte in "\ufffd".encode()))
    assert text_of(task(stop=["\ufffd"]), tokens) == "\ufffda"


def test_of_several_stops_that_one_token_completes_the_first_to_begin_counts() -> None:
    tokens = ids(b"the", b" world")
    assert text_of(task(stop=["ld", "e wor"]), tokens) == "th"
    assert text_of(task(stop=["e wor", "ld"]), tokens) == "th"


def test_a_stop_before_min_new_tokens_neither_ends_nor_cuts_the_text() -> None:
    stop = StopStrings(["the"], TOKENIZER)
    tokens = ids(b"the", b"a", b"a", b"the")
    # The engine asks after every token and heeds the answer from min_new_tokens on: an old stop is no reason.
    assert [stop(tokens[:n]) for n in range(1, 5)] == [True, False, False, True]
    assert text_of(task(stop=["the"], min_new_tokens=2), tokens) == "theaa"
    assert text_of(task(stop=["the"], min_new_tokens=2), [*ids(b"the", b"a"), END]) == "thea"


def test_a_text_that_ended_by_its_length_is_not_cut() -> None:
    assert text_of(task(stop=["the"], min_new_tokens=64), ids(b"the", b"a"), "length") == "thea"


def test_the_end_of_text_is_not_in_the_text() -> None:
    assert text_of(task(), [*ids(b"the"), END]) == "the"
    assert columns(task(), [[generated([*ids(b"the"), END], "stop")]])["num_generated_tokens"] == [2]


def test_the_name_of_the_end_of_text_holds_no_stop() -> None:
    assert not StopStrings(["|"], TOKENIZER)([*ids(b"a"), END])
    assert text_of(task(stop=["|", "text"]), [*ids(b"the", b" world"), END]) == "the world"


def test_a_stop_looks_past_tokens_without_text() -> None:
    unknown = TOKENIZER.vocab_size + 7
    assert StopStrings(["ab"], TOKENIZER)([*ids(b"a"), *[unknown] * 50, *ids(b"b")])
    assert not StopStrings(["ab"], TOKENIZER)([*ids(b"a", b"b"), unknown])
    assert not StopStrings(["ab"], TOKENIZER)([])


def test_a_tokenizer_without_bytes_is_refused_before_the_first_row() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(CheckpointError, match="not byte-level"):
        task(stop=["x"]).request_maker(Tokenizer(words))


@given(
    TOKENS, st.lists(st.sampled_from(["the", "e w", "é", "😀", "s", "ews", "\n", " ", "new"]), min_size=1, max_size=3)
)
def test_stopping_token_by_token_cuts_where_the_first_stop_is_completed(tokens: list[int], stops: list[str]) -> None:
    stop = StopStrings(stops, TOKENIZER)
    num = next((n for n in range(1, len(tokens) + 1) if stop(tokens[:n])), None)
    every = b"".join(map(TOKENIZER.token_bytes, tokens))
    if num is None:
        assert not any(text.encode() in every for text in stops)
        return
    seen = b"".join(map(TOKENIZER.token_bytes, tokens[:num]))
    before = b"".join(map(TOKENIZER.token_bytes, tokens[: num - 1]))
    assert not any(text.encode() in before for text in stops), "nothing was missed earlier"
    cut = seen[: min(place for text in stops if (place := seen.find(text.encode())) >= 0)]
    assert text_of(task(stop=stops), tokens[:num]) == cut.decode(errors="replace")


# What the text must be


CONSTRAINTS: list[dict[str, Any]] = [
    {"choices": ["World", "Sports", "é😀"]},
    {"regex": "[a-c]{2,5}!"},
    {"json_schema": {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"],
                     "additionalProperties": False}},
]  # fmt: skip


def texts_of(of: GenerateTask, num_rows: int = 40) -> list[tuple[str, str]]:
    """What the fake backend's results become: text and finish reason of every row."""
    maker = of.request_maker(TOKENIZER)
    requests = [request for row in range(num_rows) for request in maker.requests(str(row), [row])]
    results = FakeBackend(TOKENIZER.vocab_size).run(requests)
    rows = [[result] for result in results if isinstance(result, Generated)]
    assert len(rows) == num_rows
    found = columns(of, rows)
    return list(zip(found["generated_text"], found["finish_reason"], strict=True))


def test_with_choices_every_text_is_one_of_them() -> None:
    found = texts_of(task(**CONSTRAINTS[0]), 100)
    assert set(found) == {("World", "stop"), ("Sports", "stop"), ("é😀", "stop")}


def test_a_choice_that_begins_with_a_space_keeps_it() -> None:
    assert {text for text, _ in texts_of(task(choices=[" the", "world"]))} <= {" the", "world"}


def test_with_a_regex_every_text_matches_it() -> None:
    found = texts_of(task(**CONSTRAINTS[1]))
    assert len(set(found)) > 5
    assert all(re.fullmatch("[a-c]{2,5}!", text) and reason == "stop" for text, reason in found)


@pytest.mark.parametrize("written", [False, True])
def test_with_a_schema_every_text_is_json_that_it_allows(written: bool) -> None:
    schema = CONSTRAINTS[2]["json_schema"]
    found = texts_of(task(json_schema=json.dumps(schema) if written else schema))
    assert {reason for _, reason in found} == {"stop"}
    assert {json.loads(text)["a"] for text, _ in found} == {"x", "y"}


def test_what_max_new_tokens_cuts_says_so() -> None:
    (text, reason), *_ = texts_of(task(regex="[a-c]{9}", max_new_tokens=3))
    assert reason == "length" and len(text) < 9


def test_max_new_tokens_must_do_for_every_choice() -> None:
    with pytest.raises(ConfigError, match=r"^task\.max_new_tokens: 3 are too few for the longest of task\.choices"):
        task(choices=["a", "😀😀"], max_new_tokens=3).request_maker(TOKENIZER)


def test_a_constraint_that_cannot_be_enforced_is_refused_before_the_first_row() -> None:
    with pytest.raises(ConfigError, match=r"^task\.regex: cannot be enforced"):
        task(regex="(a").request_maker(TOKENIZER)
    with pytest.raises(ConfigError, match=r"^task\.json_schema: cannot be enforced"):
        task(json_schema={"type": "text"}).request_maker(TOKENIZER)


def test_all_samples_of_all_rows_share_one_constraint() -> None:
    maker = task(**CONSTRAINTS[0], num_samples=2, temperature=1.0).request_maker(TOKENIZER)
    requests = [*maker.requests("a", [1]), *maker.requests("b", [1])]
    assert len({id(request.constraint) for request in requests if isinstance(request, Request)}) == 1


@pytest.mark.parametrize("settings", CONSTRAINTS)
def test_a_task_with_a_constraint_travels_to_its_workers(settings: dict[str, Any]) -> None:
    made = pickle.loads(pickle.dumps(task(**settings)))
    assert texts_of(made, 5) == texts_of(task(**settings), 5)


# Columns


def test_a_row_becomes_text_reason_and_counts() -> None:
    assert columns(task(), [[generated(ids(b"the", b" world"))]]) == {
        "generated_text": ["the world"],
        "finish_reason": ["length"],
        "num_prompt_tokens": [5],
        "num_generated_tokens": [2],
    }


def test_a_failed_row_is_null_in_every_column() -> None:
    made = task(logprobs=True)
    result = columns(made, [None, [generated(ids(b"a"), logprobs=(-0.5,))], None])
    assert list(result) == made.adds.names
    for name, values in result.items():
        assert (values[0], values[2]) == (None, None), name
        assert values[1] is not None, name


@pytest.mark.parametrize("settings", [{}, {"logprobs": True}, {"num_samples": 3, "temperature": 1.0, "logprobs": True}])
def test_without_rows_and_with_failed_rows_only_the_types_are_the_same(settings: dict[str, Any]) -> None:
    made = task(**settings)
    assert all(values == [] for values in columns(made, []).values())
    assert all(values == [None, None] for values in columns(made, [None, None]).values())


def test_logprobs_are_added_when_asked_for() -> None:
    assert "generated_logprobs" not in task().adds.names
    result = columns(task(logprobs=True), [[generated(ids(b"a", b"b"), logprobs=(-0.5, -1.25))]])
    assert result["generated_logprobs"] == [[-0.5, -1.25]]


def test_several_samples_are_lists_in_their_order_and_the_prompt_is_counted_once() -> None:
    made = task(num_samples=2, temperature=1.0, logprobs=True)
    row = [generated(ids(b"a"), "stop", (-1.0,)), generated(ids(b"b", b"c"), "length", (-2.0, -3.0))]
    assert columns(made, [row]) == {
        "generated_text": [["a", "bc"]],
        "finish_reason": [["stop", "length"]],
        "num_prompt_tokens": [5],
        "num_generated_tokens": [[1, 2]],
        "generated_logprobs": [[[-1.0], [-2.0, -3.0]]],
    }
    assert made.adds.field("generated_text").type == pa.list_(pa.string())
    assert made.adds.field("num_prompt_tokens").type == pa.int32()


@given(TOKENS)
def test_whatever_is_generated_is_a_text_that_can_be_stored(tokens: list[int]) -> None:
    if tokens:
        text_of(task(), tokens, "length").encode()
