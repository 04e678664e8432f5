"""What the integration tests share: two clusters, a tiny model, an input and its output."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from integration.clusters import RunningCluster, connect, running_cluster
from integration.desk import GENERATE, Desk, articles
from integration.in_process import WithoutRay
from integration.running import Outcome, end_started
from integration.tiny_model import TinyModel, save_tiny_model


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    wanted = item.config.getoption("--all-on-ray") or item.get_closest_marker("on_ray")
    WithoutRay.now = item.get_closest_marker("without_ray") is not None and not wanted
    try:
        return (yield)
    finally:
        WithoutRay.now = False
        end_started()


@pytest.fixture(scope="session")
def one_node() -> Iterator[RunningCluster]:
    """A cluster of one node with two CPUs, as a laptop is."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def on_one_node(one_node: RunningCluster) -> None:
    if not WithoutRay.now:
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


@pytest.fixture(scope="session")
def new_desk(
    tmp_path_factory: pytest.TempPathFactory, tiny: TinyModel, one_node: RunningCluster
) -> Callable[[str], Desk]:
    return lambda name: Desk(tmp_path_factory.mktemp(name), tiny, one_node)


@pytest.fixture
def desk(new_desk: Callable[[str], Desk]) -> Desk:
    return new_desk("desk")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of 40, 0, 25 and 50 rows: five units, and a file that has none."""
    folder = tmp_path_factory.mktemp("source")
    for name, start, stop in (("a", 0, 40), ("b", 40, 40), ("c", 40, 65), ("d", 65, 115)):
        pq.write_table(articles(start, stop), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def generated(new_desk: Callable[[str], Desk], source: Path) -> tuple[Desk, Outcome]:
    """The job GENERATE over `source`, run with the native engine."""
    desk = new_desk("generated")
    return desk, desk.run(desk.job(source, GENERATE))
