import datetime as dt
import pickle
import time
import traceback
import uuid
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.prompts.template import MAX_PROMPT_CHARS, PromptTemplate

RECORD = {
    "text": "héllo",
    "title": None,
    "n": 5,
    "big": 10**9,
    "tags": ["a", "b"],
    "holes": ["a", None],
    "meta": {"a": 1, "b": None, "format": "pdf"},
    "raw": b"bytes",
}


def render(source: str, **more: object) -> str:
    return PromptTemplate(source).render({**RECORD, **more})


def refusal(source: str, **more: object) -> str:
    with pytest.raises(RecordError) as caught:
        render(source, **more)
    return str(caught.value)


def test_columns_are_put_where_the_template_names_them():
    assert render("Summarize: {{ text }}\n") == "Summarize: héllo\n"


def test_conditions_loops_and_fields_work():
    assert render("{% for tag in tags %}{{ loop.index }}{{ tag }} {% endfor %}{{ meta.a }} {{ meta.format }}") == (
        "1a 2b 1 pdf"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (1.5, "1.5"),
        (True, "True"),
        (Decimal("1.50"), "1.50"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC), "2024-02-29 12:00:00+00:00"),
        (dt.time(1, 2), "01:02:00"),
        (dt.timedelta(minutes=1), "0:01:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("", ""),
    ],
)
def test_plain_values_render_as_python_writes_them(value, text):
    assert render("{{ v }}", v=value) == text


@pytest.mark.parametrize("source", ["{{ title }}", "{{ title | trim }}", "{{ text ~ title }}", "{{ (title) }}"])
def test_a_null_that_is_rendered_names_its_column(source):
    assert refusal(source).startswith('column "title" is null')


def test_a_null_that_is_not_rendered_is_no_error():
    assert render("{% if title %}{{ title }}: {% endif %}{{ text }}") == "héllo"
    assert render('{{ title or "untitled" }} {{ title | default("x", true) | upper }}') == "untitled X"


def test_nulls_in_fields_and_items_are_errors_too():
    assert refusal("{{ meta.b }}").startswith('"meta.b" is null')
    assert refusal("{% for hole in holes %}{{ hole }}{% endfor %}").startswith('"hole" is null')
    assert "an item is null" in refusal("{{ holes | join }}")


def test_a_null_that_a_computation_stumbles_over_is_named():
    assert 'null in this record: "title"' in refusal("{{ title + text }}")
    assert 'null in this record: "title"' in refusal("{{ title.strip() }}")


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("{{ tags }}", 'column "tags" is a list; render its items, for example {{ tags | join(", ") }}'),
        ("{{ meta }}", 'column "meta" is a structure; render one of its fields, or all with {{ meta | tojson }}'),
        ("{{ raw }}", 'column "raw" is binary'),
        ("{{ text.upper }}", '"text.upper" is a builtin_function_or_method, which has no plain text'),
        ("{{ tags | map('upper') }}", "the expression in line 1 is a generator"),
        ("{{ range }}", '"range" is a function'),
    ],
)
def test_what_has_no_plain_text_is_refused_with_the_rule(source, rule):
    assert rule in refusal(source)


def test_a_field_that_is_not_there_is_the_rows_error():
    assert refusal("{{ meta.nope }}").startswith('"meta.nope" is missing in this record')
    assert "is missing in this record" in refusal("{{ meta.nope.deeper }}")


def test_a_column_that_the_record_lacks_is_named():
    assert refusal("{{ body }}").startswith('column "body" is missing in this record')


def test_an_error_names_its_line():
    assert refusal("{{ text }}\n\n{{ n / 0 }}").startswith("task.prompt, line 3: ZeroDivisionError")


def test_values_are_never_evaluated_as_templates():
    assert render("{{ text }}", text="{{ 7 * 7 }}{% raw %}") == "{{ 7 * 7 }}{% raw %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ v }}{{ title }}",
        "{{ v + 1 }}",
        "{{ meta[v] }}",
        "{{ v.nope.x }}",
        "{{ [v] }}",
        "{{ v * big }}",
        "{{ n[v].x }}",
    ],
)
def test_neither_message_nor_traceback_holds_the_records_text(source):
    text = "SEC" + "RET"  # the traceback shows this line
    with pytest.raises(RecordError) as caught:
        render(source, v=text)
    assert text not in "".join(traceback.format_exception(caught.value))


def test_one_bad_value_may_fail_in_any_way_and_is_a_record_error():
    class Odd:
        def __str__(self) -> str:
            raise KeyboardInterrupt

        def __len__(self) -> int:
            raise RuntimeError("odd")

    assert "RuntimeError" in refusal("{{ v | length }}", v=Odd())


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(9999) %}{{ text * 1000 }}{% endfor %}",
        "{% set x %}{% for i in range(9999) %}{{ text * 1000 }}{% endfor %}{% endset %}",
        "{% macro m() %}{% for i in range(9999) %}{{ text * 1000 }}{% endfor %}{% endmacro %}{{ m() }}",
        "{% for i in range(9999) %}" + "y" * 1000 + "{% endfor %}",
    ],
)
def test_a_prompt_that_grows_too_long_is_stopped(source):
    assert f"more than {MAX_PROMPT_CHARS} characters" in refusal(source)


def test_what_the_sandbox_stops_is_the_rows_error_and_says_so():
    assert "* repeats to at most" in refusal("{{ text * big }}")
    assert "method or attribute that prompts may not use" in refusal("{{ text.center(big) }}")


def test_a_lone_surrogate_is_invalid_utf8_of_its_column():
    assert refusal("{{ text }}", text="é\ud800").startswith('column "text" holds invalid UTF-8 at byte 2')
    assert refusal("{{ tags | join }}", tags=["a\udfff"]).startswith("the prompt holds invalid UTF-8 at byte 1")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{{ text", r"task\.prompt: line 2: unexpected end of template"),
        ("{% if %}", r"line 1: Expected an expression"),
        ("\n{{ text | nope }}", r"line 2: no filter 'nope'; there are abs, capitalize"),
        ("{% if title %}{{ text | center(3) }}{% endif %}", "no filter 'center'"),
        ("{{ text is nope }}", "no test 'nope'"),
        ("{% include 'x' %}", "cannot include, import or extend"),
        ("{% import 'x' as y %}", "cannot include, import or extend"),
        ("{% from 'x' import y %}", "cannot include, import or extend"),
        ("{% extends 'x' %}", "cannot include, import or extend"),
        ("{% do x %}", "Encountered unknown tag 'do'"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deeply"),
        ("{% for i in tags %}" * 30 + "{% endfor %}" * 30, "nested too deeply"),
    ],
)
def test_a_template_that_is_not_valid_is_refused_when_it_is_made(source, message):
    with pytest.raises(ConfigError, match=message):
        PromptTemplate(source)


def test_the_setting_is_named():
    with pytest.raises(ConfigError, match=r"task\.question: line 1"):
        PromptTemplate("{{", "task.question")


def test_columns_are_the_names_that_a_record_must_bring():
    source = (
        "{% set k = a %}{% for t in tags %}{{ t }}{{ loop.index }}{{ k }}{% endfor %}{{ meta.x }}{{ range(n) | list }}"
    )
    assert PromptTemplate(source).columns == {"a", "tags", "meta", "n"}
    assert PromptTemplate("no column").columns == frozenset()


def test_an_unknown_column_is_refused_with_the_nearest_and_the_known_names():
    with pytest.raises(
        ConfigError, match=r'task\.prompt: .*no column "txet"\. Did you mean "text"\? It has "id", "text"'
    ):
        PromptTemplate("{{ txet }}").check_columns(["id", "text"])
    PromptTemplate("{{ text }}").check_columns(["id", "text"])


def test_a_column_in_single_braces_is_refused_unless_others_are_used() -> None:
    with pytest.raises(ConfigError, match=r"has {text} in it; a column is written in two braces: {{ text }}"):
        PromptTemplate("Summarize: {text}").check_columns(["id", "text"])
    PromptTemplate("{text}: {{ text }}").check_columns(["id", "text"])
    PromptTemplate("Which {city}?").check_columns(["id", "text"])


def test_a_template_can_be_sent_to_a_worker():
    template = PromptTemplate("{{ text }}!", "task.text")
    sent = pickle.loads(pickle.dumps(template))
    assert sent.render(RECORD) == "héllo!" and (sent.setting, sent.columns) == ("task.text", {"text"})


def test_tens_of_thousands_of_records_render_in_a_second():
    template = PromptTemplate("Summarize: {{ text }} and {{ n }}\n{% if title %}{{ title }}{% endif %}")
    begin = time.perf_counter()
    for _ in range(20_000):
        template.render(RECORD)
    assert time.perf_counter() - begin < 2


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_rendered_as_it_is(text):
    assert PromptTemplate("<{{ text }}>\n").render({"text": text}) == f"<{text}>\n"


# Whose text it is


def marked(source: str, **more: object) -> str:
    """The prompt, with the record's text in brackets."""
    prompt = PromptTemplate(source).render_with_spans({**RECORD, **more})
    text = prompt.text
    for start, end in reversed(prompt.spans):
        text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
    own = "".join(part.partition("]")[2] for part in ("]" + text).split("["))
    assert prompt.own_text == own
    return text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("A {{ text }}\nB", "A [héllo]\nB"),
        ("{{ text }}{{ n }}", "[héllo][5]"),
        ("{{ text | upper }}: {{ text[:2] ~ n }}", "[HÉLLO]: [hé5]"),
        ("{{ meta.a }} {{ tags | join(', ') }}", "[1] [a, b]"),
        ("{% for tag in tags %}{{ loop.index }}. {{ tag }}\n{% endfor %}", "1. [a]\n2. [b]\n"),
        ("{% if title %}{{ title }}: {% else %}none: {% endif %}{{ text }}", "none: [héllo]"),
        ("{{ 'fixed' }} {{ 1 + 2 }} {{ text }}", "fixed 3 [héllo]"),
        ("{% for e in [{'text': 'T', 'y': 'W'}] %}{{ e.text }}-{{ e.y }} {% endfor %}{{ text }}", "T-W [héllo]"),
        ("{% for text in ['T'] %}{{ text }} {% endfor %}{{ text }}", "T [héllo]"),
        ("{% for i in range(n) if i > 3 %}{{ i }}{% endfor %}", "[4]"),
        ("{% for a, b in meta | items %}{{ a }},{% endfor %}", "[a],[b],[format],"),
        ("{% set x = text | upper %}{% set y = 'Y' %}{{ x }}{{ y }}", "[HÉLLO]Y"),
        ("{% set x = 'X' %}{% if n %}{% set x = text %}{% endif %}{{ x }}", "[héllo]"),
        ("{% if n %}{% set x = text %}{% else %}{% set x = 'X' %}{% endif %}{{ x }}", "[héllo]"),
        ("{% if not title %}{% set title = 'none' %}{% endif %}{{ title }}", "[none]"),
        ("{% set x %}a {{ text }}{% endset %}{% set y %}b{% endset %}{{ x }}\n{{ y }}", "[a héllo]\nb"),
        ("{% with x = text, y = 'Y' %}{{ x }}{{ y }}{% endwith %}", "[héllo]Y"),
        ("{% macro m(t) %}<{{ t }}>{% endmacro %}{{ m('a') }}{{ m(text) }}", "<a>[<héllo>]"),
        ("{% macro m(t) %}{{ t }}{{ text }}{% endmacro %}{{ m('a') }}", "[ahéllo]"),
        ("{% block b %}a {{ text }}{% endblock %}", "a [héllo]"),
        ("{% filter upper %}a {{ text }}{% endfilter %}b", "A HÉLLOb"),
        ("{{ text }}{{ empty }}", "[héllo]"),
    ],
)
def test_what_shows_a_column_is_the_records_and_all_else_the_templates(source, expected):
    assert marked(source, empty="") == expected


def test_a_constant_that_is_the_same_text_as_a_value_is_still_the_templates():
    assert marked("{{ a }}x{{ a }}\n{{ b }}\n", a="x", b="\n") == "[x]x[x]\n[\n]\n"
    assert marked("{% set y %}{{ a }}{% endset %}x{{ y }}", a="x") == "x[x]"


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("A {{ text }}\nB", "A \nB"),
        ("no column", "no column"),
        ("{% for e in ['a', 'b'] %}{{ e }};{% endfor %}{{ text }}", "a;b;"),
        ("{% if text %}a{% endif %}b", None),
        ("{% for tag in tags %}-{{ tag }}{% endfor %}", None),
        ("{% filter upper %}{{ text }}{% endfilter %}", None),
        ("{{ meta.a }}:", None),
        ("{{ n + 1 }}:", None),
    ],
)
def test_the_text_of_every_prompt_is_known_where_no_record_decides_over_it(source, own):
    assert PromptTemplate(source).own_text == own
