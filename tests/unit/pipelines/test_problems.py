from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj_batch.errors import ConfigError
from pipelines.config import Job, check_job
from pipelines.job_file import JobFile, parse_job
from pipelines.problems import known_settings

HEAD = "name: x\ninput: {path: a.parquet}\noutput: {path: out}\n"
GENERATE = HEAD + 'task: {kind: generate, prompt: "{{ text }}"}\n'
BLOCKS = ("input", "task", "model", "backend", "replicas", "output", "errors")


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_job(parse_job(text, "job.yaml"))
    return str(caught.value)


def classify(labels: str) -> str:
    return HEAD + f"task: {{kind: classify, prompt: x, labels: {labels}}}\n"


# Unknown settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("modle: {path: demo}", "5:1: modle: no such setting; did you mean model?"),
        ("model: {pth: demo}", "5:9: model.pth: no such setting; did you mean model.path?"),
        ("backend: {max_runing: 1}", "5:11: backend.max_runing: no such setting; did you mean backend.max_running?"),
        ("replicas:\n  gpu_each: 1", "6:3: replicas.gpu_each: no such setting; did you mean replicas.gpus_each?"),
        ("errors: {max_failed: 1}", "5:10: errors.max_failed: no such setting; did you mean errors.max_failed_rows?"),
        ("dtype: float16", "5:1: dtype: no such setting; did you mean model.dtype?"),
        ("max_new_tokens: 5", "5:1: max_new_tokens: no such setting; did you mean task.max_new_tokens?"),
        ("limit: 5", "5:1: limit: no such setting; did you mean input.limit?"),
        ("model: {max_running: 5}", "5:9: model.max_running: no such setting; did you mean backend.max_running?"),
        ("backend: {max: 5}", "5:11: backend.max: no such setting; did you mean replicas.max?"),
        ("zzzzzz: 5", "5:1: zzzzzz: no such setting; there are name, input, task, model"),
        ("errors: {zzzzzz: 5}", "5:10: errors.zzzzzz: no such setting; there are max_failed_rows, bad_files"),
    ],
)  # fmt: skip
def test_an_unknown_setting_is_named_with_the_nearest(line: str, message: str) -> None:
    assert refusal(GENERATE + line + "\n").startswith(f"job.yaml:{message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("max_tokens: 5", "task.max_tokens: no such setting; did you mean task.max_new_tokens?"),
        ("temprature: 1", "task.temprature: no such setting; did you mean task.temperature?"),
        ("max_running: 1", "task.max_running: no such setting; did you mean backend.max_running?"),
    ],
)
def test_the_settings_of_a_task_are_those_of_its_kind(settings: str, message: str) -> None:
    assert message in refusal(HEAD + f"task: {{kind: generate, prompt: x, {settings}}}\n")


def test_a_setting_of_another_kind_is_unknown_to_this_one() -> None:
    message = refusal(HEAD + "task: {kind: classify, prompt: x, labels: [a, b], min_p: 0.1}\n")
    assert message.startswith("job.yaml:4:51: task.min_p: no such setting; there are kind, method, prompt")


@settings(max_examples=50)
@given(st.sampled_from([(), *((block,) for block in BLOCKS)]), st.text("abcdefghij_", min_size=1, max_size=12))
def test_every_unknown_name_at_every_level_is_refused_under_its_full_name(block: tuple[str, ...], name: str) -> None:
    values: dict[str, Any] = parse_job(GENERATE, "job.yaml").values
    settings = values.setdefault(block[0], {}) if block else values
    if name in known_settings(Job, block, values) or name in settings:
        return
    settings[name] = 1
    with pytest.raises(ConfigError) as caught:
        check_job(JobFile("job.yaml", values))
    assert f": {'.'.join((*block, name))}: no such setting" in str(caught.value)


# Kinds of task


KINDS = "must be generate, classify, extract, score or embed"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{prompt: x}", f"4:1: task.kind: {KINDS}, it is missing"),
        ("{prompt: x, top_k: 40}", f"4:1: task.kind: {KINDS}, it is missing"),
        (
            "{kind: clasify}",
            f"4:8: task.kind: {KINDS}, got 'clasify'; did you mean classify?",
        ),
        ("{kind: summarize}", f"4:8: task.kind: {KINDS}, got 'summarize'"),
        ("{kind: null}", f"4:8: task.kind: {KINDS}, got None"),
        ("{kind: [generate]}", f"4:8: task.kind: {KINDS}, got ['generate']"),
        ("generate", "4:1: task: must hold settings, such as kind; got 'generate'"),
        ("[a]", "4:1: task: must hold settings, such as kind; got a list"),
        ("null", "4:1: task: must hold settings, such as kind; got None"),
    ],
)  # fmt: skip
def test_a_task_that_is_none_is_refused_for_that_alone(task: str, message: str) -> None:
    found = refusal(HEAD + f"task: {task}\n")
    assert found.startswith(f"job.yaml:{message}") and "\n" not in found


def test_a_block_that_is_a_value_says_what_it_holds() -> None:
    assert refusal(GENERATE + "model: demo\n") == (
        "job.yaml:5:1: model: must hold settings, such as path, revision, dtype; got 'demo'"
    )
    assert refusal(GENERATE + "replicas: [1]\n").endswith("such as min, max, gpus_each; got a list")


# Types, where a setting may have one of several


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("a", "job.yaml:4:35: task.labels: must be a mapping or a list, got 'a'"),
        ("null", "job.yaml:4:35: task.labels: must be a mapping or a list, got None"),
        ("[a]", "job.yaml:4:35: task.labels: must have at least 2 items, got 1"),
        ("[a, 1]", "job.yaml:4:47: task.labels.1: must be a text, got 1"),
        ("[a, [b]]", "job.yaml:4:47: task.labels.1: must be a text, got a list"),
        ("{a: x, b: 1}", "job.yaml:4:50: task.labels.b: must be a text, got 1"),
        ("{str: 1, b: x}", "job.yaml:4:44: task.labels.str: must be a text, got 1"),
        ("{1: x, b: y}", "job.yaml:4:44: task.labels.1: a name must be a text, got 1; put it in quotes"),
        ("[a, '']", "job.yaml:4:35: task.labels: a label and its text must not be empty"),
        ("[a, a]", "job.yaml:4:35: task.labels: two labels have the same text 'a'"),
    ],
)
def test_a_wrong_label_is_one_line_that_points_at_it(labels: str, message: str) -> None:
    found = refusal(classify(labels))
    assert found.startswith(message) and "\n" not in found


def test_labels_that_yaml_reads_as_truths_are_each_named() -> None:
    assert refusal(classify("[true, false]")).splitlines() == [
        "job.yaml:4:44: task.labels.0: must be a text, got True; put a text in quotes",
        "job.yaml:4:50: task.labels.1: must be a text, got False; put a text in quotes",
    ]


def test_a_text_with_a_colon_should_be_in_quotes() -> None:
    message = refusal(HEAD + "task: {kind: generate, prompt: {Topic: x}}\n")
    assert message == "job.yaml:4:24: task.prompt: must be a text, got a mapping; put a text in quotes"


def test_names_that_are_no_texts_are_refused() -> None:
    assert refusal(GENERATE + "1: 2\n") == "job.yaml:5:1: 1: a name must be a text, got 1; put it in quotes"
    assert "a name must be a text, got None" in refusal(GENERATE + "~: 2\n")


# Everything at once


def test_all_that_is_wrong_is_said_at_once_each_with_its_place() -> None:
    text = "name: X\ninput:\n  colums: [a]\n  limit: 0\ntask: {kind: generate, prompt: x, top_p: 2}\noutput: {}\n"
    assert refusal(text).splitlines() == [
        "job.yaml:1:1: name: must be 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit",
        "job.yaml:2:1: input.path: is missing; it must be set",
        "job.yaml:4:3: input.limit: must be greater than or equal to 1, got 0",
        "job.yaml:3:3: input.colums: no such setting; did you mean input.columns?",
        "job.yaml:5:35: task.top_p: must be less than or equal to 1, got 2",
        "job.yaml:6:1: output.path: is missing; it must be set",
    ]


def test_an_empty_mapping_misses_what_must_be_set() -> None:
    assert [line.split(": ")[1] for line in refusal("{}").splitlines()] == ["name", "input", "task", "output"]


def test_long_values_are_cut() -> None:
    assert len(refusal(GENERATE + f"model: {{dtype: {'x' * 10_000}}}\n")) < 300


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from([*BLOCKS, "name", "kind", "path", "prompt", "labels", "min", "max"]), inner
            )
            | st.dictionaries(st.none() | st.integers() | st.booleans() | st.text(max_size=3), inner, max_size=2)
        ),
        max_leaves=12,
    )
)
def test_whatever_stands_in_a_file_the_answer_is_a_job_or_a_refusal(values: Any) -> None:
    if not isinstance(values, dict):
        values = {"name": values}
    base = parse_job(GENERATE, "job.yaml").values
    for candidate in (values, {**base, **values}):
        try:
            check_job(JobFile("job.yaml", candidate))
        except ConfigError as error:
            assert str(error).startswith("job.yaml")
