from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gptj_batch.stages.resources import ReplicaPlan
from pipelines.build import MAX_TABLES, MIN_TABLES, ROWS_AT_ONCE, replica_settings, tables_at_once
from pipelines.config import Job
from pipelines.prepare import prepare

MakeJob = Callable[..., Job]
REPLICAS = ReplicaPlan(min_replicas=1, max_replicas=1, initial_replicas=1, num_gpus=0.0, num_cpus=1.0, num_threads=3)


@pytest.mark.parametrize("rows_per_unit", [1, 32, 33, 100, 256, 257, 512, 10_000])
def test_a_replica_has_enough_rows_in_hand_and_never_a_single_table(make_job: MakeJob, rows_per_unit: int) -> None:
    run = prepare(make_job())
    run = replace(run, plan=replace(run.plan, max_rows_per_unit=rows_per_unit))
    tables = tables_at_once(run)
    assert MIN_TABLES <= tables <= MAX_TABLES
    assert tables * rows_per_unit >= ROWS_AT_ONCE or tables == MAX_TABLES


def test_a_replica_is_started_as_the_job_says(make_job: MakeJob, model_folder: Path) -> None:
    job = make_job(
        model={"dtype": "float32", "revision": "v2"},
        backend={"kind": "native", "max_step_tokens": 7, "max_running": 5, "kv_cache_gb": 0.5, "prefix_caching": False},
    )
    settings = replica_settings(prepare(job), REPLICAS)
    assert (settings.kind, settings.model_path, settings.revision) == ("native", str(model_folder), "v2")
    assert (settings.dtype, settings.device, settings.num_threads) == ("float32", "cpu", 3)
    assert (settings.max_step_tokens, settings.max_running, settings.kv_cache_gb) == (7, 5, 0.5)
    assert not settings.prefix_caching


def test_what_is_left_open_stays_open_and_auto_is_native(make_job: MakeJob) -> None:
    settings = replica_settings(prepare(make_job(backend={"kind": "auto"})), replace(REPLICAS, num_gpus=1.0))
    assert (settings.kind, settings.dtype, settings.device) == ("native", "auto", "cuda")
    assert (settings.max_step_tokens, settings.max_running, settings.kv_cache_gb) == (None, None, None)
    assert settings.prefix_caching
