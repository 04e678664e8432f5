"""The arguments of the notebook functions, and what is said of wrong ones."""

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import pipelines
from gptj_batch.errors import CheckpointError, ConfigError
from gptj_batch.tasks.registry import AnySettings
from pipelines.arguments import argument_names, is_written, make_job

CLASSIFY: dict[str, Any] = {"prompt": "{{ text }}", "labels": ["a", "b"]}


def said(kind: str, **arguments: Any) -> str:
    with pytest.raises(ConfigError) as raised, argument_names(kind):
        make_job(kind, None, arguments)
    return str(raised.value)


def test_arguments_become_the_settings_of_a_job() -> None:
    job = make_job("classify", "in", {**CLASSIFY, "model": "demo", "dtype": "float32", "key": "id", "prefix": "g_"})
    assert (job.input.path, job.input.key, job.output.prefix) == ("in", "id", "g_")
    assert (job.model.path, job.model.dtype) == ("demo", "float32")
    assert not is_written(job)


def test_an_output_is_a_text_or_a_path() -> None:
    job = make_job("classify", None, {**CLASSIFY, "output": Path("out")})
    assert job.output.path == "out" and is_written(job)


def test_a_backend_and_replicas_are_a_word_or_a_block() -> None:
    short = make_job("classify", None, {**CLASSIFY, "backend": "fake", "replicas": 2})
    assert (short.backend.kind, short.replicas.min, short.replicas.max) == ("fake", 2, 2)
    long = make_job("classify", None, {**CLASSIFY, "backend": {"max_running": 8}, "replicas": {"gpus_each": 0.5}})
    assert (long.backend.kind, long.backend.max_running, long.replicas.gpus_each) == ("auto", 8, 0.5)


def test_arrays_and_numbers_of_numpy_are_taken_as_lists_and_numbers() -> None:
    job = make_job("generate", None, {"prompt": "{{ text }}", "max_new_tokens": np.int64(5), "stop": np.array(["x"])})
    assert (job.task.max_new_tokens, job.task.stop) == (5, ("x",))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("lables", "labels"), ("modle", "model"), ("dtpye", "dtype"), ("out_put", "output"), ("replica", "replicas")],
)
def test_an_unknown_argument_is_refused_with_the_nearest_that_there_is(wrong: str, near: str) -> None:
    message = said("classify", **CLASSIFY, **{wrong: 1})
    assert message == f"classify(): {wrong}: no such argument; did you mean {near}?"


def test_an_argument_like_no_other_is_refused_with_those_that_there_are() -> None:
    message = said("classify", **CLASSIFY, zzzz=1)
    assert "no such argument; there are " in message and "likelihood" in message and "kind," not in message


def test_every_wrong_argument_is_named_at_once() -> None:
    assert said("classify", **CLASSIFY, lables=1, modle=2).count("no such argument") == 2


def test_a_wrong_value_is_said_of_the_argument_and_not_of_a_job_file() -> None:
    assert said("classify", prompt="{{ text }}", labels=["a"]) == (
        "classify(): labels: must have at least 2 items, got 1"
    )
    message = said("generate", prompt="{{ text }}", dtype="float8")
    assert message.startswith("generate(): dtype: must be") and "model." not in message
    assert said("generate").startswith("generate(): prompt: is missing")


def test_a_setting_of_another_task_is_said_to_be_that() -> None:
    assert "belongs to `generate`" in said("classify", **CLASSIFY, regex="x")


def test_messages_from_deeper_down_speak_of_arguments_too() -> None:
    with (
        pytest.raises(CheckpointError, match=r"^classify\(\): model: no; set output or key$"),
        argument_names("classify"),
    ):
        raise CheckpointError("model.path: no; set output.path or input.key")


@pytest.mark.parametrize("settings", get_args(AnySettings), ids=lambda settings: settings.__name__)
def test_every_setting_of_a_task_stands_in_its_functions_docstring(settings: Any) -> None:
    (kind,) = get_args(settings.model_fields["kind"].annotation)
    said = getattr(pipelines, kind).__doc__
    assert [name for name in settings.model_fields if name != "kind" and not re.search(rf"\b{name}\b", said)] == []


def test_an_output_may_be_all_of_its_block_and_must_say_where() -> None:
    whole = {"path": Path("out"), "format": "jsonl", "partition_by": ["label"]}
    output = make_job("classify", None, {**CLASSIFY, "output": whole, "prefix": "x_"}).output
    assert (output.path, output.format, output.partition_by, output.prefix) == ("out", "jsonl", ("label",), "x_")
    assert 'a dictionary needs "path"' in said("classify", **CLASSIFY, output={"partition_by": ["label"]})
    assert "partition_bye" in said("classify", **CLASSIFY, output={"path": "out", "partition_bye": ["label"]})
