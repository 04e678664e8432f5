"""The benchmark's two workers give the same answers to the same work, so what it compares is comparable."""

import random
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.ours_worker import OurEngine
from jobs.bench.transformers_worker import TransformersEngine
from jobs.bench.work import Kind, Numbers, Work, WorkRow
from tests.parity.conftest import SMALL, random_oracle

HEADS = {
    "causal-lm": "GPTJForCausalLM",
    "sequence-classification": "GPTJForSequenceClassification",
    "question-answering": "GPTJForQuestionAnswering",
}
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folders = {}
    for head, name in HEADS.items():
        folders[head] = str(tmp_path_factory.mktemp(head))
        settings = {"pad_token_id": SMALL["vocab_size"] - 1, "num_labels": 2} if head != "causal-lm" else {}
        random_oracle(name, **settings).save_pretrained(folders[head])
    return folders


def setup(folder: str, head: str) -> dict[str, Any]:
    return {"checkpoint": folder, "head": head, "dtype": "float32", "kv_cache_bytes": 1 << 20}


def answers(folders: dict[str, str], head: str, work: Work, **options: Any) -> tuple[Numbers, Numbers]:
    ours, theirs = OurEngine(), TransformersEngine()
    ours.load(setup(folders[head], head))
    theirs.load(setup(folders[head], head))
    return ours.prepare(work, {})(), theirs.prepare(work, {"batch_size": 4, **options})()


def make(kind: Kind, shared: int = 0, **settings: Any) -> Work:
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(SMALL["vocab_size"] - 1) for _ in range(count)]

    beginning = tokens(shared)
    return Work(
        kind=kind, rows=[WorkRow(prompt=beginning + tokens(draw.randint(3, 12)), **settings) for _ in range(10)]
    )


def close(one: Numbers, other: Numbers) -> bool:
    return one == [pytest.approx(row, abs=TOLERANCE) for row in other]


@pytest.mark.parametrize("is_sorted", [False, True])
def test_generated_tokens_are_the_same(folders: dict[str, str], is_sorted: bool) -> None:
    ours, theirs = answers(folders, "causal-lm", make("generate", max_new_tokens=9), sorted=is_sorted)
    assert ours == theirs


def test_outputs_of_several_lengths_are_cut_out_of_the_longest(folders: dict[str, str]) -> None:
    rows = [WorkRow(prompt=row.prompt, max_new_tokens=3 + index) for index, row in enumerate(make("generate").rows)]
    ours, theirs = answers(folders, "causal-lm", Work(kind="generate", rows=rows))
    assert ours == theirs
    assert [len(row) for row in theirs] == [3 + index for index in range(10)]


@pytest.mark.parametrize("method", ["labels", "labels-after-shared"])
def test_one_token_labels_are_scored_the_same(folders: dict[str, str], method: str) -> None:
    work = make("labels", shared=20, labels=((3,), (14,), (15,)))
    assert close(*answers(folders, "causal-lm", work, method=method))


@pytest.mark.parametrize("method", ["labels", "labels-after-own"])
def test_long_labels_are_scored_the_same(folders: dict[str, str], method: str) -> None:
    work = make("labels", labels=((3, 5, 7), (3, 9), (11, 2, 4, 8)))
    assert close(*answers(folders, "causal-lm", work, method=method))


def test_classes_are_scored_the_same(folders: dict[str, str]) -> None:
    assert close(*answers(folders, "sequence-classification", make("classify"), sorted=True))


def test_spans_are_scored_the_same(folders: dict[str, str]) -> None:
    assert close(*answers(folders, "question-answering", make("span", first_token=2), sorted=True))


def test_our_worker_counts_every_computed_token(folders: dict[str, str], tmp_path: Path) -> None:
    engine, work = OurEngine(), make("generate", max_new_tokens=5)
    engine.load(setup(folders["causal-lm"], "causal-lm"))
    engine.prepare(work, {})()
    assert engine.counters()["computed_tokens"] == sum(len(row.prompt) + 4 for row in work.rows)
