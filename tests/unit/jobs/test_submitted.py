import os
from pathlib import Path
from typing import Any

import pytest
from whole_runs import job

from gptj_batch.errors import ConfigError
from jobs.submitted import Jobs


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.mark.parametrize("address", ["http://head.example:8265", "head.example:8265", "http://10.1.2.3:8265"])
def test_another_machine_without_a_token_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"RAY_AUTH_MODE=token .* --insecure"):
        Jobs(address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://localhost:9", "http://[::1]:9"])
def test_this_machine_needs_no_token_but_somebody_must_answer(address: str) -> None:
    with pytest.raises(ConfigError, match="no Ray cluster answers at"):
        Jobs(address)


@pytest.mark.parametrize(
    ("environment", "used"),
    [
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9", "RAY_ADDRESS": "http://127.0.0.1:7"}, 9),
        ({"RAY_ADDRESS": "http://127.0.0.1:9"}, 9),
        ({"RAY_ADDRESS": "127.0.0.1:7"}, 8265),  # what `run` connects to is no dashboard
    ],
)
def test_the_address_may_stand_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], used: int
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"answers at http://127\.0\.0\.1:{used} "):
        Jobs(None)


def test_an_address_that_is_given_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:7", "RAY_ADDRESS": "127.0.0.1:7"}
    for name, value in elsewhere.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"answers at http://127\.0\.0\.1:9 ") as refused:
        Jobs("http://127.0.0.1:9")
    assert ":7" not in str(refused.value)
    assert {name: os.environ[name] for name in elsewhere} == elsewhere


@pytest.mark.parametrize(("is_incremental", "script"), [(False, "run"), (True, "score_scheduled")])
def test_an_incremental_job_is_started_as_schedulers_start_it(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, is_incremental: bool, script: str
) -> None:
    class Client:
        """Takes jobs as a cluster's does."""

        def submit_job(self, **job: Any) -> str:
            self.job = job
            assert (Path(job["runtime_env"]["working_dir"]) / "jobs" / f"{script}.py").is_file()
            return "id"

    client = Client()
    monkeypatch.setattr("jobs.submitted._client", lambda address: client)
    assert Jobs("http://127.0.0.1:9").submit(job(tmp_path, model_folder, input={"incremental": is_incremental})) == "id"
    assert client.job["entrypoint"] == f"python jobs/{script}.py job.yaml"
