"""Which tasks there are."""

from typing import Annotated

from pydantic import Field

from gptj_batch.tasks.base import Task
from gptj_batch.tasks.classify import ClassifySettings, ClassifyTask
from gptj_batch.tasks.generate import GenerateSettings, GenerateTask

TaskSettings = Annotated[GenerateSettings | ClassifySettings, Field(discriminator="kind")]


def make_task(settings: GenerateSettings | ClassifySettings) -> Task:
    """Return the task that the settings describe. Raises ConfigError for a template that cannot be used."""
    if isinstance(settings, GenerateSettings):
        return GenerateTask(settings)
    return ClassifyTask(settings)
