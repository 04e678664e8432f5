"""What the integration tests share: two clusters and a tiny model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.clusters import RunningCluster, connect, running_cluster
from integration.tiny_model import TinyModel, save_tiny_model


@pytest.fixture(scope="session")
def one_node() -> Iterator[RunningCluster]:
    """A cluster of one node with two CPUs, as a laptop is."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def on_one_node(one_node: RunningCluster) -> None:
    connect(one_node)


@pytest.fixture(scope="session")
def gpu_nodes() -> Iterator[RunningCluster]:
    """A head without GPUs, and two nodes that say that they have two each."""
    node = {"num_cpus": 2, "num_gpus": 2}
    with running_cluster(node, node) as cluster:
        yield cluster


@pytest.fixture
def on_gpu_nodes(gpu_nodes: RunningCluster) -> None:
    connect(gpu_nodes)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny_model(Path(tmp_path_factory.mktemp("model")) / "tiny")
