"""Which tasks there are."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from gptj_batch.model_folder import ModelFacts
from gptj_batch.tasks.base import Task
from gptj_batch.tasks.classify import ClassifySettings, ClassifyTask
from gptj_batch.tasks.classify_head import ClassifyHeadSettings, ClassifyHeadTask
from gptj_batch.tasks.embed import EmbedSettings, EmbedTask
from gptj_batch.tasks.extract import ExtractSettings, ExtractTask
from gptj_batch.tasks.extract_prompt import ExtractPromptSettings, ExtractPromptTask
from gptj_batch.tasks.generate import GenerateSettings, GenerateTask
from gptj_batch.tasks.score import ScoreSettings, ScoreTask

AnySettings = (
    GenerateSettings
    | ClassifySettings
    | ClassifyHeadSettings
    | ExtractSettings
    | ExtractPromptSettings
    | ScoreSettings
    | EmbedSettings
)
# Kinds of which one method has settings of its own.
BY_HEAD, BY_PROMPT = "classify by head", "extract by prompt"
_TAGS = {("classify", "head"): BY_HEAD, ("extract", "prompt"): BY_PROMPT}


def _tag(values: Any) -> Any:
    """Return which settings a block of values, or settings that were made, should be."""
    kind, method = (
        values.get(name) if isinstance(values, dict) else getattr(values, name, None) for name in ("kind", "method")
    )
    # What a user wrote may be anything, also what cannot be looked up.
    return _TAGS.get((kind, method), kind) if isinstance(kind, str) and isinstance(method, str) else kind


TaskSettings = Annotated[
    Annotated[GenerateSettings, Tag("generate")]
    | Annotated[ClassifySettings, Tag("classify")]
    | Annotated[ClassifyHeadSettings, Tag(BY_HEAD)]
    | Annotated[ExtractSettings, Tag("extract")]
    | Annotated[ExtractPromptSettings, Tag(BY_PROMPT)]
    | Annotated[ScoreSettings, Tag("score")]
    | Annotated[EmbedSettings, Tag("embed")],
    Discriminator(_tag),
]


def make_task(settings: AnySettings, model: ModelFacts) -> Task:
    """Return the task that the settings describe, for a model.

    Raises ConfigError for a template that cannot be used, or a setting that the model rules out; CheckpointError for a
    model that cannot be used.
    """
    if isinstance(settings, GenerateSettings):
        return GenerateTask(settings)
    if isinstance(settings, ClassifySettings):
        return ClassifyTask(settings)
    if isinstance(settings, ClassifyHeadSettings):
        return ClassifyHeadTask(settings, model.labels, model.problem_type)
    if isinstance(settings, ScoreSettings):
        return ScoreTask(settings)
    if isinstance(settings, EmbedSettings):
        return EmbedTask(settings, model.n_embd, model.n_layer)
    if isinstance(settings, ExtractPromptSettings):
        return ExtractPromptTask(settings)
    return ExtractTask(settings)
