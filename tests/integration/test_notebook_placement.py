"""Warm replicas on several nodes, on the GPUs that they say they have."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from integration.clusters import RunningCluster, connect
from pipelines import classify, extract, shutdown, warm_replicas

pytestmark = [pytest.mark.timeout(600), pytest.mark.extended]


@pytest.fixture(autouse=True)
def cluster(gpu_nodes: RunningCluster) -> Iterator[None]:
    connect(gpu_nodes)
    yield
    shutdown()


def label(rows: int, **settings: Any) -> pd.DataFrame:
    data = pd.DataFrame({"text": [f"text {row}" for row in range(rows)]})
    labels = ["a", "b"]
    settings = {"model": "demo", "backend": "fake", "progress": False, **settings}
    done: pd.DataFrame = classify(data, prompt="{{ text }}", labels=labels, **settings)
    assert done.error.isna().all() and done.text.tolist() == data.text.tolist()
    return done


def test_there_are_no_more_replicas_than_tables_and_they_are_on_both_nodes() -> None:
    label(20)
    assert len(warm_replicas()) == 1
    label(300)
    assert len(warm_replicas()) == 4, "one a GPU"
    assert len({replica["node"] for replica in warm_replicas()}) == 2


def test_replicas_are_as_many_as_are_asked_for() -> None:
    label(300, replicas=2)
    assert len(warm_replicas()) == 2


def test_two_models_stay_side_by_side_where_there_is_room() -> None:
    label(40, replicas=2)
    first = {replica["pid"] for replica in warm_replicas()}
    data = pd.DataFrame({"text": ["one two three"]})
    extract(data, question="which?", context="{{ text }}", model="demo", backend="fake", progress=False)
    assert first < {replica["pid"] for replica in warm_replicas()}


def test_several_replicas_share_a_gpu() -> None:
    label(300, replicas={"gpus_each": 0.5, "min": 4, "max": 4})
    assert len(warm_replicas()) == 4


def test_more_than_fits_is_refused() -> None:
    with pytest.raises(Exception, match=r"classify\(\): no node has room for one replica of 3 GPUs"):
        label(20, replicas={"gpus_each": 3})
