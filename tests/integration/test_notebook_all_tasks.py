"""Every task through its notebook function."""

import math
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray

from gptj_batch.demo import demo_records
from integration.clusters import RunningCluster, connect
from integration.tiny_model import TinyModel
from pipelines import classify, embed, extract, generate, score, shutdown, summary

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def cluster(one_node: RunningCluster) -> Iterator[None]:
    connect(one_node)
    yield
    shutdown()


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return pd.read_parquet(demo_records()).head(40)


DEMO: dict[str, Any] = {"model": "demo", "progress": False}


def test_texts_are_scored_as_the_model_finds_them(tiny: TinyModel) -> None:
    rows = pd.DataFrame({"text": ["The team won.", "Shares fell"], "context": ["Sports", "Business"]})
    settings = {"model": str(tiny.folder), "dtype": "float32", "progress": False}
    done = score(rows, text=" {{ text }}", context="{{ context }}", **settings)
    for row in done.itertuples():
        before, ids = len(tiny.encode(row.context)), tiny.encode(f"{row.context} {row.text}")
        wanted = sum(float(tiny.logprobs(ids)[place - 1, ids[place]]) for place in range(before, len(ids)))
        assert row.logprob_sum == pytest.approx(wanted, abs=1e-4)
        assert row.perplexity == pytest.approx(math.exp(-wanted / row.num_scored_tokens), rel=1e-4)
    assert {one.name for one in summary(done).measured} >= {"logprob_sum", "perplexity", "num_scored_tokens"}


def test_vectors_are_columns_of_every_kind(records: pd.DataFrame) -> None:
    settings: dict[str, Any] = {"text": "{{ text }}", "normalize": True, **DEMO}
    frame = embed(records, **settings)
    width = len(frame.embedding.iloc[0])
    assert np.linalg.norm(frame.embedding.iloc[0]) == pytest.approx(1, abs=1e-3)
    table = embed(pa.Table.from_pandas(records), **settings)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), width)
    dataset = embed(datasets.Dataset.from_pandas(records), **settings)
    assert len(dataset[0]["embedding"]) == width
    lazily = embed(ray.data.from_pandas(records), **settings).to_pandas()
    assert np.allclose(np.stack(lazily.embedding), np.stack(frame.embedding), atol=1e-2)
    assert [one.most for one in summary(frame).measured if "embedding" in one.name] == [width]


def test_answers_by_prompt_stand_where_they_say(records: pd.DataFrame) -> None:
    settings: dict[str, Any] = {"method": "prompt", "prompt": "{{ text }}\nQuestion: {{ question }}\nAnswer:"}
    done = extract(records, context="{{ text }}", **settings, **DEMO)
    assert done.error.isna().all()
    for row in done.itertuples():
        assert row.text[row.answer_start : row.answer_end] == row.answer_text


def test_labels_by_a_trained_head_and_calibrated_ones(records: pd.DataFrame) -> None:
    by_head = classify(records, method="head", text="{{ text }}", **DEMO)
    assert (by_head.label == by_head.topic).mean() > 0.9
    labels = sorted(set(records.topic))
    prompt = "{{ text }}\nTopic:"
    calibrated = classify(records, prompt=prompt, labels=labels, calibrate="content_free", abstain_below=0.6, **DEMO)
    assert "no label" in summary(calibrated).counted["label"] or calibrated.label.notna().all()
    plain = classify(records, prompt=prompt, labels=labels, **DEMO)
    assert not np.allclose(calibrated.label_score, plain.label_score)


def test_equal_prompts_are_computed_once_when_that_is_asked_for(records: pd.DataFrame) -> None:
    twice = pd.concat([records.head(5)] * 4, ignore_index=True)
    done = generate(twice, prompt="{{ text }}\nSummary:", max_new_tokens=8, deduplicate=True, **DEMO)
    assert done.generated_text.nunique() <= 5 and done.error.isna().all()
