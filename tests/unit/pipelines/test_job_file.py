import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj_batch.errors import ConfigError
from pipelines.job_file import JobFile, Location, apply_overrides, parse_job, read_job_file, to_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.sampled_from(
        ["1e3", "+.5", "1.", "010", "0x1f", "yes", "no", "on", "~", "null", "=", "<<", "1_000", "12:30:00"]
    )
    | st.sampled_from(["2024-01-01", ".inf", ".nan", "- a", "a: b", "#c", "'", '"', " x ", "x\n", "\u2028", "\ufeff"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.text("abcdefgh_", min_size=1, max_size=6)


def values_of(text: str) -> dict[str, Any]:
    return parse_job(text, "job.yaml").values


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_job(text, "job.yaml")
    return str(caught.value)


def overridden(text: str, *overrides: str) -> JobFile:
    job = parse_job(text, "job.yaml")
    apply_overrides(job, overrides)
    return job


# Scalars


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("NO", "NO"),
        ("true", True), ("True", True), ("FALSE", False),
        ("null", None), ("~", None), ("", None), ("Null", None),
        ("010", 10), ("+5", 5), ("-0", 0), ("0", 0), ("0o17", "0o17"), ("0x1f", "0x1f"), ("1_000", "1_000"),
        ("1.5", 1.5), ("1e3", 1000.0), ("1E-2", 0.01), (".5", 0.5), ("1.", 1.0), ("-1.5e+3", -1500.0), ("1e", "1e"),
        ("12:30:00", "12:30:00"), ("2024-01-01", "2024-01-01"), ("1.2.3", "1.2.3"), (".inf", ".inf"), (".", "."),
        ("'1'", "1"), ('"true"', "true"), ("=", "="), ("[a, 1]", ["a", 1]), ("{a: no}", {"a": "no"}),
        ("|\n  a\n  b", "a\nb\n"), ("'é 😀'", "é 😀"), (r'"\u00e9\n"', "é\n"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(scalar: str, value: Any) -> None:
    found = values_of(f"a: {scalar}\n")["a"]
    assert found == value and type(found) is type(value)


def test_whole_numbers_and_others_stay_apart() -> None:
    assert {name: type(value) for name, value in values_of("a: 1\nb: 1.0\nc: true\n").items()} == {
        "a": int,
        "b": float,
        "c": bool,
    }


@settings(max_examples=40)
@given(VALUES)
def test_what_is_written_is_read_as_it_was(value: Any) -> None:
    assert values_of(to_yaml({"a": value}))["a"] == value


# What is no job file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "job.yaml: a job file holds settings such as `name:`"),
        ("# nothing\n", "job.yaml: a job file holds settings"),
        ("hello", "job.yaml: a job file holds settings"),
        ("- a\n- b\n", "job.yaml: a job file holds settings"),
        ("a: 1\n---\nb: 2\n", "job.yaml:2:1: not valid YAML: but found another document"),
        ("a:\n\t- b\n", "job.yaml:2:1: not valid YAML: found character '\\t'"),
        ("a: 1\n b: 2\n", "job.yaml:2:3: not valid YAML: mapping values are not allowed here"),
        ("a: [1, 2\n", "job.yaml:2:1: not valid YAML"),
        ("a: {{ text }}\n", "job.yaml:1:5: not valid YAML: found unhashable key"),
        ("a: 'x\n", "job.yaml:2:1: not valid YAML: found unexpected end of stream"),
        ("a: *b\n", "job.yaml:1:4: not valid YAML: found undefined alias"),
        ("a: \x00\n", "job.yaml: not valid YAML: "),
        ("? [a]\n: 1\n", "job.yaml:1:3: not valid YAML: found unhashable key"),
        ("a: !!python/object/apply:os.system [x]\n", "job.yaml:1:4: not valid YAML: could not determine a constructor"),
        ("a: !!python/name:os.system\n", "job.yaml:1:4: not valid YAML: could not determine a constructor"),
        ("a: !other x\n", "job.yaml:1:4: not valid YAML: could not determine a constructor"),
        ("a: !!int x\n", "job.yaml: not valid YAML: a value that cannot be read (ValueError"),
        ("a: !!bool x\n", "job.yaml: not valid YAML: a value that cannot be read (KeyError"),
        ("a: !!float [1]\n", "job.yaml: not valid YAML: a value that cannot be read (TypeError"),
        ("a: !!timestamp x\n", "job.yaml: not valid YAML: a value that cannot be read (AttributeError"),
        (f"a: {'9' * 5000}\n", "job.yaml: not valid YAML: a value that cannot be read (ValueError: Exceeds the limit"),
        (f"a: {'[' * 500}\n", "job.yaml: not valid YAML: a value that cannot be read (RecursionError"),
        ("a: &x [*x]\n", "job.yaml: not valid YAML: a value that cannot be read (RecursionError"),
        ('a: "\\ud83d\\ude00"\n', "job.yaml:1:4: half a surrogate pair"),
    ],
)
def test_what_is_no_job_file_is_refused_with_its_place(text: str, message: str) -> None:
    found = refusal(text)
    assert found.startswith(message)
    assert "\n" not in found and len(found) < 400


def test_aliases_that_stand_for_more_than_memory_holds_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert "more than 100000 settings" in refusal("\n".join(lines))


def test_an_alias_is_read_like_what_it_stands_for() -> None:
    assert values_of("a: &x {b: 1}\nc: *x\n") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "job.yaml:2:1: a stands there twice, first at job.yaml:1:1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "job.yaml:4:3: a.b stands there twice, first at job.yaml:2:3"),
        ("a: {b: 1, 'b': 1}\n", "job.yaml:1:11: a.b stands there twice, first at job.yaml:1:5"),
        ("a:\n- {b: 1}\n- {b: 1, b: 2}\n", "job.yaml:3:10: a.1.b stands there twice, first at job.yaml:3:4"),
    ],
)
def test_a_setting_that_stands_there_twice_is_refused(text: str, message: str) -> None:
    assert refusal(text) == message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    for name, reason in (("none.yaml", "No such file"), (".", "Is a directory"), ("latin.yaml", "utf-8")):
        with pytest.raises(ConfigError, match=rf"job file .*cannot be read: .*{reason}"):
            read_job_file(tmp_path / name)


def test_a_file_is_called_what_the_user_called_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.yaml").write_text("a: é\n", encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path)
    job = read_job_file("./job.yaml")
    assert job.values == {"a": "é"} and job.place(("a",)).startswith("./job.yaml:1:")


# Places


def test_a_place_is_that_of_the_setting_or_of_what_is_around_it() -> None:
    job = parse_job("a: 1\nb:\n  c:\n    - x\n    - y\n", "job.yaml")
    assert job.place(("b", "c")) == "job.yaml:3:3"
    assert job.place(("b", "c", 1)) == "job.yaml:5:7"
    assert job.place(("b", "missing", "deeper")) == "job.yaml:2:1"
    assert job.place(("missing",)) == "job.yaml:1:1"
    assert JobFile("job.yaml", {}).place(("a",)) == "job.yaml"


def locations(value: Any, location: Location = ()) -> list[tuple[Location, Any]]:
    """Every setting in a value, with its location."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    below = [pair for part, item in inner for pair in locations(item, (*location, part))]
    return [((*location, part), item) for part, item in inner] + below


@settings(max_examples=40)
@given(st.dictionaries(NAMES, st.recursive(NAMES, lambda v: st.dictionaries(NAMES, v, max_size=3), max_leaves=9)))
def test_at_its_place_in_the_file_every_setting_stands(values: dict[str, Any]) -> None:
    text = to_yaml(values)
    if not values:
        return
    job = parse_job(text, "job.yaml")
    lines = text.splitlines()
    for location, _ in locations(values):
        name, line, column = job.place(location).split(":")
        assert name == "job.yaml"
        assert lines[int(line) - 1][int(column) - 1 :].startswith(f"{location[-1]}:")


# Overrides


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("a.b=2", {"a": {"b": 2, "c": [1]}}),
        ("a.c=[x, 2]", {"a": {"b": 1, "c": ["x", 2]}}),
        ("a={}", {"a": {}}),
        ("a=", {"a": None}),
        ("d=no", {"a": {"b": 1, "c": [1]}, "d": "no"}),
        ("d.e.f=1.5", {"a": {"b": 1, "c": [1]}, "d": {"e": {"f": 1.5}}}),
        ("d=a=b", {"a": {"b": 1, "c": [1]}, "d": "a=b"}),
        ("d={{ text }}", {"a": {"b": 1, "c": [1]}, "d": "{{ text }}"}),
        ("d=[unclosed", {"a": {"b": 1, "c": [1]}, "d": "[unclosed"}),
        ("d=!!int x", {"a": {"b": 1, "c": [1]}, "d": "!!int x"}),
        ("d='5'", {"a": {"b": 1, "c": [1]}, "d": "5"}),
    ],
)
def test_an_override_sets_one_setting(override: str, values: dict[str, Any]) -> None:
    assert overridden("a: {b: 1, c: [1]}\n", override).values == values


def test_the_last_override_wins_and_earlier_ones_make_room() -> None:
    assert overridden("a: null\n", "a.b=1", "a.c=2", "a.b=3").values == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize("override", ["a", "a.b", "=1", ".a=1", "a.=1", "a..b=1", ""])
def test_what_is_no_override_is_refused_with_the_form(override: str) -> None:
    with pytest.raises(ConfigError, match=r"must have the form setting\.name=value"):
        overridden("a: 1\n", override)


@pytest.mark.parametrize("override", ["a.b=1", "c.0=1", "d.e.f.g=1"])
def test_an_override_cannot_go_through_a_value(override: str) -> None:
    with pytest.raises(ConfigError, match=f'override "{override}": . holds a value, not settings'):
        overridden("a: 1\nc: [1]\nd: {e: {f: x}}\n", override)


def test_what_an_override_set_has_its_place_there() -> None:
    job = overridden("a: {b: 1, c: 2}\n", "a.b=7")
    assert job.place(("a", "b")) == 'override "a.b=7"'
    assert job.place(("a", "c")) == "job.yaml:1:11"
    job = overridden("a: {b: 1, c: 2}\n", "a={b: 5}")
    assert job.place(("a", "b")) == job.place(("a", "c")) == 'override "a={b: 5}"'
    assert overridden("b: 1\n", f"b={'x' * 500}").place(("b",)).endswith('x…"')


@settings(max_examples=40)
@given(st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), VALUES), max_size=4))
def test_any_value_can_be_set_by_an_override(pairs: list[tuple[list[str], Any]]) -> None:
    for names, value in pairs:
        job = overridden("z: 1\n", f"{'.'.join(names)}={to_yaml(value).removesuffix('...' + chr(10))}")
        found: Any = job.values
        for name in names:
            found = found[name]
        assert found == value
        assert isinstance(found, float) == isinstance(value, float) and not (
            isinstance(value, float) and math.isnan(value)
        )
