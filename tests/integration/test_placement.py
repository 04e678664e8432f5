from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray._private.state

from gptj_batch.stages.resources import plan_replicas
from integration.probes import Describe, MakeRows, Replica
from integration.running import CANARY, Outcome, output_table, run_here, write_job
from integration.tiny_model import TinyModel
from jobs import waiting
from pipelines.cluster import node_resources
from pipelines.progress import Progress
from pipelines.whole_blocks import on_cpu, on_replicas, unit_numbers

# Two nodes of two CPUs and two GPUs, and a head without. No GPU is there, so the backend is the fake.
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("on_gpu_nodes")]
NUM_GPUS = 4


@pytest.fixture
def records(tmp_path: Path) -> Path:
    file = tmp_path / "records.parquet"
    pq.write_table(pa.table({"text": [f"{CANARY} {row}" for row in range(300)]}), file)
    return file


def run_job(records: Path, tiny: TinyModel, **replicas: Any) -> tuple[Outcome, Path, list[dict[str, Any]]]:
    """Run a job with the fake backend; return also its output and the replicas that it started."""
    output = records.parent / "output"
    before = infer_actors()
    job = write_job(
        records.parent / "job.yaml",
        input={"path": str(records)},
        task={"kind": "generate", "prompt": "{{ text }}", "max_new_tokens": 4},
        model={"path": str(tiny.folder)},
        backend={"kind": "fake"},
        output={"path": str(output)},
        replicas=replicas,
    )
    ended = run_here(job)
    return ended, output, [actor for name, actor in infer_actors().items() if name not in before]


def infer_actors() -> dict[str, dict[str, Any]]:
    return {
        name: actor for name, actor in ray._private.state.actors().items() if "InferStage" in actor["ActorClassName"]
    }


@pytest.mark.extended
def test_every_gpu_gets_a_replica_and_all_replicas_work_at_once(tmp_path: Path) -> None:
    plan = plan_replicas(node_resources(), 1, None, None, None)
    assert (plan.max_replicas, plan.num_gpus, plan.device) == (NUM_GPUS, 1.0, "cuda")
    made = on_cpu(unit_numbers(12), MakeRows([5] * 12))
    # No replica lets its first table go before all of them have one.
    replicated = on_replicas(made, Replica, (1, (str(tmp_path), NUM_GPUS)), plan, 2, 12)
    tables = on_cpu(replicated, Describe()).iter_batches(batch_size=None, batch_format="pyarrow")
    seen = [row for table in tables for row in table.to_pylist()]
    places = {(row["node"], row["gpus"], row["pid"]) for row in seen}
    assert len(places) == NUM_GPUS
    assert Counter(gpus for _, gpus, _ in places) == {"0": 2, "1": 2}, "one GPU each, both of either node"


def test_a_job_starts_a_replica_on_every_gpu(records: Path, tiny: TinyModel) -> None:
    ended, output, replicas = run_job(records, tiny)
    assert ended.code == 0, ended.stderr
    assert output_table(output).num_rows == 300
    assert len(replicas) == NUM_GPUS


@pytest.mark.extended
def test_a_job_starts_no_more_replicas_than_it_may(records: Path, tiny: TinyModel) -> None:
    ended, _, replicas = run_job(records, tiny, max=2)
    assert ended.code == 0, ended.stderr
    assert len(replicas) == 2


def test_a_job_of_one_unit_starts_one_replica(records: Path, tiny: TinyModel) -> None:
    pq.write_table(pq.read_table(records).slice(0, 20), records)
    ended, output, replicas = run_job(records, tiny)
    assert (ended.code, output_table(output).num_rows) == (0, 20)
    assert len(replicas) == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"gpus_each": 3}, "no node has room for one replica of 3 GPUs"),
        ({"cpus_each": 64}, "replicas.cpus_each"),
        ({"min": 5}, "replicas.min (5) is above what fits into the cluster (4)"),
    ],
    ids=["gpus", "cpus", "min"],
)
def test_a_replica_that_fits_nowhere_is_a_configuration_error(
    records: Path, tiny: TinyModel, settings: dict[str, Any], reason: str
) -> None:
    ended, output, replicas = run_job(records, tiny, **settings)
    assert ended.code == 2
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (replicas, list(output.glob("part-*"))) == ([], [])


@pytest.mark.extended
def test_a_run_for_which_others_leave_no_gpu_says_so_and_begins_when_they_end(
    records: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:  # here, where Ray's workers need no module of the tests for it
        def is_there(self) -> bool:
            return True

    others = [ray.remote(Other).options(num_gpus=2, num_cpus=0).remote() for _ in range(2)]
    ray.get([other.is_there.remote() for other in others])
    say = Progress.say

    def say_and_end_the_others(progress: Progress, message: str) -> None:
        say(progress, message)
        if "others hold what a replica takes (1 GPUs and" in message:
            for other in others:
                ray.kill(other)

    monkeypatch.setattr(waiting, "QUIET_S", 2.0)
    monkeypatch.setattr(Progress, "say", say_and_end_the_others)
    ended, output, _ = run_job(records, tiny, max=1)
    assert ended.code == 0, ended.stderr
    assert ended.stderr.count("no row is done yet") == 1 and "free in the whole cluster: 0 GPUs" in ended.stderr
    assert output_table(output).num_rows == 300
