import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from gptj_batch.errors import ConfigError
from gptj_batch.model_folder import ModelFacts
from gptj_batch.tasks.classify import ClassifySettings, ClassifyTask
from gptj_batch.tasks.classify_head import ClassifyHeadSettings, ClassifyHeadTask
from gptj_batch.tasks.extract import ExtractSettings, ExtractTask
from gptj_batch.tasks.extract_prompt import ExtractPromptSettings, ExtractPromptTask
from gptj_batch.tasks.generate import GenerateSettings, GenerateTask
from gptj_batch.tasks.registry import TaskSettings, make_task

GENERATE = {"kind": "generate", "prompt": "{{ text }}"}
CLASSIFY = {"kind": "classify", "prompt": "{{ text }}", "labels": ["a", "b"]}
CLASSIFY_HEAD = {"kind": "classify", "method": "head", "text": "{{ text }}"}
EXTRACT = {"kind": "extract", "question": "Who?", "context": "{{ text }}"}
EXTRACT_PROMPT = {"kind": "extract", "method": "prompt", "prompt": "{{ text }}", "context": "{{ text }}"}
MODEL = ModelFacts(
    folder=Path("model"),
    n_positions=64,
    vocab_size=300,
    architectures=(),
    labels=("bad", "good"),
    problem_type="single_label_classification",
    identity="",
)


def settings_of(values: dict[str, Any]) -> Any:
    return TypeAdapter(TaskSettings).validate_python(values)


def test_the_kind_decides_whose_settings_they_are() -> None:
    assert isinstance(settings_of(GENERATE), GenerateSettings)
    assert isinstance(settings_of(CLASSIFY), ClassifySettings)
    with pytest.raises(ValidationError):
        settings_of({**GENERATE, "labels": ["a", "b"]})


def test_the_method_decides_too() -> None:
    assert isinstance(settings_of(CLASSIFY_HEAD), ClassifyHeadSettings)
    assert isinstance(settings_of(EXTRACT), ExtractSettings)
    assert isinstance(settings_of({**EXTRACT, "method": "head"}), ExtractSettings)
    assert isinstance(settings_of(EXTRACT_PROMPT), ExtractPromptSettings)
    assert isinstance(settings_of({**CLASSIFY, "method": "prompt"}), ClassifySettings)
    with pytest.raises(ValidationError):
        settings_of({**CLASSIFY, "method": "head"})


def test_each_kind_has_its_task() -> None:
    kinds = {GenerateTask: GENERATE, ClassifyTask: CLASSIFY, ClassifyHeadTask: CLASSIFY_HEAD, ExtractTask: EXTRACT}
    for kind, values in {**kinds, ExtractPromptTask: EXTRACT_PROMPT}.items():
        assert isinstance(make_task(settings_of(values), MODEL), kind)


@pytest.mark.parametrize("values", [GENERATE, CLASSIFY, CLASSIFY_HEAD, EXTRACT, EXTRACT_PROMPT])
def test_a_task_can_be_sent_to_a_worker(values: dict[str, Any]) -> None:
    task = make_task(settings_of(values), MODEL)
    sent = pickle.loads(pickle.dumps(task))
    assert sent.prompt({"text": "hello"}) == task.prompt({"text": "hello"})
    assert (sent.adds, sent.raw_type, sent.reads) == (task.adds, task.raw_type, task.reads)
    assert (sent.head, sent.notes_type) == (task.head, task.notes_type)


@pytest.mark.parametrize("values", [GENERATE, CLASSIFY, EXTRACT_PROMPT])
def test_a_template_that_is_none_is_refused_when_the_task_is_made(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"task\.prompt: line 1"):
        make_task(settings_of({**values, "prompt": "{{ text"}), MODEL)
