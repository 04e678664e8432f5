"""Tables on their way through the stages, and tasks to send them through."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.backends.fake import FakeBackend
from gptj_batch.records.read import UnitPlan, list_files, plan_units
from gptj_batch.requests import AnyRequest
from gptj_batch.results import AnyResult, Failed
from gptj_batch.stages.infer import InferStage, ReplicaSettings
from gptj_batch.stages.read import ReadStage
from gptj_batch.stages.tokenize import TokenizeStage
from gptj_batch.tasks.base import Task
from gptj_batch.tasks.classify import ClassifySettings, ClassifyTask
from gptj_batch.tasks.classify_head import ClassifyHeadSettings, ClassifyHeadTask
from gptj_batch.tasks.embed import EmbedSettings, EmbedTask
from gptj_batch.tasks.extract import ExtractSettings, ExtractTask
from gptj_batch.tasks.generate import GenerateSettings, GenerateTask
from gptj_batch.tasks.score import ScoreSettings, ScoreTask

POSITIONS, WIDTH = 64, 16
# Of every row: a good one, one that cannot be rendered, one too long to fit, a good one.
TEXTS = ["the world", None, "x" * 100, "sports news"]
GOOD = [True, False, False, True]


def generate(**settings: Any) -> GenerateTask:
    values = {"kind": "generate", "prompt": "{{ text }}\n", "max_new_tokens": 4, **settings}
    return GenerateTask(GenerateSettings.model_validate(values))


def classify(**settings: Any) -> ClassifyTask:
    values = {"kind": "classify", "prompt": "{{ text }}\nTopic:", "labels": ["World", "Sports", "news"], **settings}
    return ClassifyTask(ClassifySettings.model_validate(values))


def classify_head(**settings: Any) -> ClassifyHeadTask:
    values = {"kind": "classify", "method": "head", "text": "{{ text }}", **settings}
    labels = ("LABEL_0", "LABEL_1")
    return ClassifyHeadTask(ClassifyHeadSettings.model_validate(values), labels, "single_label_classification")


def extract(**settings: Any) -> ExtractTask:
    question = '{{ "?" * (text | length) }}'  # too long for the long text
    values = {"kind": "extract", "question": question, "context": "{{ text }}", "max_question_tokens": 20, **settings}
    return ExtractTask(ExtractSettings.model_validate(values))


def score(**settings: Any) -> ScoreTask:
    values = {"kind": "score", "context": "{{ text }}", "text": " yes", **settings}
    return ScoreTask(ScoreSettings.model_validate(values))


def embed(**settings: Any) -> EmbedTask:
    return EmbedTask(EmbedSettings.model_validate({"kind": "embed", "text": "{{ text }}", **settings}), WIDTH, 2)


def records(texts: Sequence[str | None] = TEXTS) -> pa.Table:
    """Rows with a text, and a column that no task reads; the schema has something to say."""
    numbers = pa.array(range(len(texts)), pa.int16())
    schema = pa.schema(
        [pa.field("id", pa.int16(), metadata={"of": "id"}), pa.field("text", pa.string())], metadata={"who": "tests"}
    )
    return pa.table([numbers, pa.array(texts, pa.string())], schema=schema)


def plan(folder: Path, table: pa.Table, max_rows: int = 1000, name: str = "rows.parquet") -> UnitPlan:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name)
    return plan_units(list_files(str(folder / name)), max_rows)


def place(number: int = 0) -> pa.Table:
    """What Ray Data hands to the first stage: where in the run the unit stands."""
    return pa.table({"id": [number]})


def read(of: UnitPlan, unit: int = 0, columns: list[str] | None = None, key: str | None = None) -> pa.Table:
    return ReadStage(of, np.arange(of.num_units, dtype=np.int32), columns, key)(place(unit))


def tokenized(folder: Path, task: Task, table: pa.Table, model_folder: Path) -> pa.Table:
    return TokenizeStage(task, str(model_folder), None, POSITIONS)(read(plan(folder, table)))


def replica(model_folder: Path) -> ReplicaSettings:
    return ReplicaSettings(
        kind="fake", model_path=str(model_folder), revision=None, dtype="auto", device="cpu", num_threads=1
    )


class PartlyFailing(FakeBackend):
    """A fake that fails every request with one of these keys."""

    def __init__(self, *keys: str) -> None:
        super().__init__(300)
        self._keys = keys

    def run(self, requests: Sequence[AnyRequest]) -> list[AnyResult]:
        return [
            Failed(key=request.key, error=f"no luck with {request.key}") if request.key in self._keys else result
            for request, result in zip(requests, super().run(requests), strict=True)
        ]


def infer(task: Task, model_folder: Path, *failing_keys: str) -> InferStage:
    stage = InferStage(task, replica(model_folder))
    if failing_keys:
        stage._backend = PartlyFailing(*failing_keys)
    return stage
