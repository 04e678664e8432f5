import pytest
from jinja2.exceptions import SecurityError, TemplateSyntaxError

from gptj_batch.prompts.sandbox import Sandbox

BIG = 10**9
VALUES = {"text": "abc", "n": 5, "big": BIG, "x": 1.5, "items": ["a", "b"], "raw": b"abc", "nothing": None}


def evaluate(expression: str) -> object:
    return Sandbox().compile_expression(expression, undefined_to_none=False)(**VALUES)


@pytest.mark.parametrize(
    "expression",
    [
        "text.center(big)",
        "text.ljust(big)",
        "text.rjust(big)",
        "text.zfill(big)",
        "text.expandtabs(big)",
        "'{:1000000000}'.format(1)",
        "'{n:1000000000}'.format_map({'n': 1})",
        "raw.center(big)",
        "n.to_bytes(big, 'big')",
        "text['center'](big)",
        "text * big",
        "big * text",
        "items * big",
        "(1, 2) * big",
        "2 ** big",
        "big ** big",
        "'%1000000000d' % 1",
        "range(big)",
        "x | round(big, 'ceil')",
        "items | tojson(indent=big)",
        "items.append(1)",
        "text.__class__.__mro__",
        "items | map(attribute='__class__') | join",
        "range.__globals__['x']",
        "nothing.__class__.__base__",
    ],
)
def test_what_grows_without_bound_or_leads_out_is_refused(expression):
    with pytest.raises(SecurityError):
        str(evaluate(expression))  # an attribute that is refused is only an error where it is used


@pytest.mark.parametrize(
    "filter_name", ["center", "indent", "format", "batch", "slice", "random", "attr", "urlize", "xmlattr", "safe", "e"]
)
def test_filters_that_grow_draw_or_escape_are_not_there(filter_name):
    with pytest.raises(TemplateSyntaxError, match="No filter"):
        Sandbox().from_string("{{ text | " + filter_name + " }}")


@pytest.mark.parametrize("name", ["lipsum", "cycler", "joiner", "namespace", "dict"])
def test_range_is_the_only_function(name):
    assert list(Sandbox().globals) == ["range"]
    with pytest.raises(Exception, match=f"'{name}' is undefined"):
        evaluate(f"{name}()")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("'=' * 40", "=" * 40),
        ("n * n", 25),
        ("2 ** 10", 1024),
        ("x ** 2", 2.25),
        ("n % 2", 1),
        ("range(3) | list", [0, 1, 2]),
        ("1.256 | round(2)", 1.26),
        ("1.2 | round(0, 'ceil')", 2.0),
        ("items | join(', ')", "a, b"),
        ("items | map('upper') | join", "AB"),
        ("text.upper()", "ABC"),
        ("text[:2]", "ab"),
    ],
)
def test_what_prompts_need_works_as_in_jinja(expression, value):
    assert evaluate(expression) == value


def test_json_is_plain_and_not_escaped_for_html():
    assert Sandbox().from_string("{{ v | tojson }}").render(v={"a": "<é>", "b": None}) == '{"a": "<é>", "b": null}'
    assert Sandbox().from_string("{{ v | tojson(indent=1) }}").render(v=[1]) == "[\n 1\n]"


def test_text_is_not_escaped_and_the_last_newline_stays():
    assert Sandbox().from_string("<{{ text }}>\n").render(text="a & b") == "<a & b>\n"
