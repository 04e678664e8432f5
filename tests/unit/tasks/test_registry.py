import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from gptj_batch.errors import ConfigError
from gptj_batch.model_folder import ModelFacts
from gptj_batch.tasks.classify import ClassifySettings, ClassifyTask
from gptj_batch.tasks.classify_head import ClassifyHeadSettings, ClassifyHeadTask
from gptj_batch.tasks.embed import EmbedSettings, EmbedTask
from gptj_batch.tasks.extract import ExtractSettings, ExtractTask
from gptj_batch.tasks.extract_prompt import ExtractPromptSettings, ExtractPromptTask
from gptj_batch.tasks.generate import GenerateSettings, GenerateTask
from gptj_batch.tasks.registry import TaskSettings, make_task
from gptj_batch.tasks.score import ScoreSettings, ScoreTask

GENERATE = {"kind": "generate", "prompt": "{{ text }}"}
CLASSIFY = {"kind": "classify", "prompt": "{{ text }}", "labels": ["a", "b"]}
CLASSIFY_HEAD = {"kind": "classify", "method": "head", "text": "{{ text }}"}
EXTRACT = {"kind": "extract", "question": "Who?", "context": "{{ text }}"}
SCORE = {"kind": "score", "context": "Q:", "text": "{{ text }}"}
EMBED = {"kind": "embed", "text": "{{ text }}"}
EXTRACT_PROMPT = {"kind": "extract", "method": "prompt", "prompt": "{{ text }}", "context": "{{ text }}"}
MODEL = ModelFacts(
    folder=Path("model"),
    n_positions=64,
    n_embd=16,
    n_layer=2,
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
    assert isinstance(settings_of(SCORE), ScoreSettings)
    assert isinstance(settings_of(EMBED), EmbedSettings)
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
    kinds |= {ExtractPromptTask: EXTRACT_PROMPT, ScoreTask: SCORE, EmbedTask: EMBED}
    for kind, values in kinds.items():
        assert isinstance(make_task(settings_of(values), MODEL), kind)


@pytest.mark.parametrize("values", [GENERATE, CLASSIFY, CLASSIFY_HEAD, EXTRACT, EXTRACT_PROMPT, SCORE, EMBED])
def test_a_task_can_be_sent_to_a_worker(values: dict[str, Any]) -> None:
    task = make_task(settings_of(values), MODEL)
    sent = pickle.loads(pickle.dumps(task))
    assert sent.prompt({"text": "hello"}) == task.prompt({"text": "hello"})
    assert (sent.adds, sent.raw_type, sent.reads) == (task.adds, task.raw_type, task.reads)
    assert (sent.head, sent.notes_type) == (task.head, task.notes_type)


def test_an_embedding_is_as_wide_as_the_model_and_of_one_of_its_layers() -> None:
    assert make_task(settings_of(EMBED), MODEL).adds.field("embedding").type.list_size == 16
    with pytest.raises(ConfigError, match=r"task\.layer: must lie between -3 and 2, .* got 3"):
        make_task(settings_of({**EMBED, "layer": 3}), MODEL)


@pytest.mark.parametrize("values", [GENERATE, CLASSIFY, EXTRACT_PROMPT])
def test_a_template_that_is_none_is_refused_when_the_task_is_made(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"task\.prompt: line 1"):
        make_task(settings_of({**values, "prompt": "{{ text"}), MODEL)
