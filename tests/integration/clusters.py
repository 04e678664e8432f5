"""Ray clusters for tests: real raylets on this machine, in a folder of their own, gone at the end."""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines.cluster import IDLE_WORKERS

Started = TypeVar("Started")
HEAD_CPUS = 2
OBJECT_STORE_BYTES = 1 << 30
# As of the clusters that the command starts: jobs after one another find workers that have imported everything.
IDLE_WORKERS_KEPT = {"num_workers_soft_limit": IDLE_WORKERS}
QUICK_HEALTH_CHECKS = {
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
    "health_check_initial_delay_ms": 0,
}


@dataclass(frozen=True)
class RunningCluster:
    """Where a cluster is reached, and the folder that holds its logs."""

    address: str
    folder: Path
    nodes: Cluster


def add_node(cluster: RunningCluster, node: dict[str, float]) -> None:
    """Add a node; once more where a busy machine lets Ray's own time for it pass."""
    if threading.current_thread() is not threading.main_thread():
        cluster.nodes._shutdown_at_exit = False  # handlers of signals are set by the main thread alone
    _patiently(
        lambda: cluster.nodes.add_node(object_store_memory=OBJECT_STORE_BYTES, temp_dir=str(cluster.folder), **node)
    )


def _patiently(start: Callable[[], Started]) -> Started:
    for _ in range(2):
        with suppress(Exception):
            return start()
    return start()


@contextmanager
def running_cluster(*nodes: dict[str, float], notices_losses: bool = False) -> Iterator[RunningCluster]:
    """Start a head with two CPUs, and beside it a node for each of `nodes` (num_cpus, num_gpus); see `connect`.

    GPUs are what Ray is told: none has to exist. notices_losses: a node that is gone is noticed within some seconds
    """
    # Short: the path of a socket has room for about a hundred characters.
    top = tempfile.mkdtemp(prefix="gi-", dir="/tmp")
    folder = Path(top) / "ray"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        # Here Ray notes the cluster's address; elsewhere it would be found by whoever else runs Ray on this machine.
        patch.setenv("RAY_TMPDIR", top)
        # Ray's workers fail where they would get by for a user, if they see that a test started them.
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)
        # The head's log monitor reads all logs all the time, for drivers that want to show them: no test does.
        spared = {"include_dashboard": False, "include_log_monitor": False}
        config = {**IDLE_WORKERS_KEPT, **(QUICK_HEALTH_CHECKS if notices_losses else {})}
        head = {
            "num_cpus": HEAD_CPUS, "object_store_memory": OBJECT_STORE_BYTES, "_system_config": config, **spared,
        }  # fmt: skip
        cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args={**head, "temp_dir": str(folder)}))
        running = RunningCluster(cluster.address, folder, cluster)
        try:
            for node in nodes:
                add_node(running, node)
            yield running
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(top, ignore_errors=True)


def connect(cluster: RunningCluster) -> None:
    """Connect this process, or stay connected: jobs that run in it use the connection, and share its workers."""
    if ray.is_initialized():
        if ray.get_runtime_context().gcs_address == cluster.address:
            return
        ray.shutdown()
    for name in ("ray", "ray.data"):  # pytest would keep every line they log
        logging.getLogger(name).setLevel(logging.ERROR)
    assert os.environ["RAY_AUTH_MODE"] == "disabled", "tests/conftest.py says so"
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
