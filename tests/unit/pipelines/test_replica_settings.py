from collections.abc import Callable
from pathlib import Path

from pipelines.config import Job
from pipelines.prepare import prepare
from pipelines.replica import replica_settings, start_here

MakeJob = Callable[..., Job]


def test_a_replica_is_started_as_the_job_says(make_job: MakeJob, model_folder: Path) -> None:
    job = make_job(
        model={"dtype": "float32", "revision": "v2"},
        backend={"kind": "native", "max_step_tokens": 7, "max_running": 5, "kv_cache_gb": 0.5, "prefix_caching": False},
    )
    settings = replica_settings(prepare(job), "cpu", 3)
    assert (settings.kind, settings.model_path, settings.revision) == ("native", str(model_folder), "v2")
    assert (settings.dtype, settings.device, settings.num_threads) == ("float32", "cpu", 3)
    assert (settings.max_step_tokens, settings.max_running, settings.kv_cache_gb) == (7, 5, 0.5)
    assert not settings.prefix_caching


def test_what_is_left_open_stays_open_and_auto_is_native(make_job: MakeJob) -> None:
    settings = replica_settings(prepare(make_job(backend={"kind": "auto"})), "cuda", 1)
    assert (settings.kind, settings.dtype, settings.device) == ("native", "auto", "cuda")
    assert (settings.max_step_tokens, settings.max_running, settings.kv_cache_gb) == (None, None, None)
    assert settings.prefix_caching


def test_an_engine_in_this_process_is_the_jobs(make_job: MakeJob) -> None:
    backend = start_here(prepare(make_job()))
    assert backend.describe()["kind"] == "fake"
    backend.close()
