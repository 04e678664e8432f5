"""Jobs handed to a running cluster through Ray's Jobs API: `gptj-batch submit`, `status`, `logs`, `stop` and `list`."""

import asyncio
import ipaddress
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import gptj_batch
import jobs
import pipelines
from gptj_batch.errors import BackendError, ConfigError
from gptj_batch.records.output import OutputFolder
from jobs.travel import for_the_cluster
from pipelines.config import Job

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PACKAGES = (gptj_batch, pipelines, jobs)
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "results", "notebooks", "*.so")
CONFIG_FILE = "job.yaml"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
POLL_S = 0.5
# Ray goes to what these name rather than to the address that it is given.
OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class Jobs:
    """The jobs of one cluster.

    address: its dashboard, None for the one in the environment, or this machine's
    insecure: without a token to another machine

    Raises ConfigError where the address may not be used, or nobody answers there.
    """

    def __init__(self, address: str | None, *, insecure: bool = False) -> None:
        self.address = address or _named_dashboard() or DEFAULT_ADDRESS
        _check_secret(self.address, insecure=insecure)
        self._client = _client(self.address)

    def submit(self, job: Job, submission_id: str | None = None, python: str = "python") -> str:
        """Send this package and the job to the cluster, start it there, and return its submission id.

        python: the interpreter there, which must have the packages that this one needs
        Raises ConfigError for an id that is taken.
        """
        with tempfile.TemporaryDirectory(prefix="gptj-batch-") as folder:
            for package in PACKAGES:
                source = Path(str(package.__file__)).parent
                shutil.copytree(source, Path(folder) / source.name, ignore=LEFT_BEHIND)
            script = "score_scheduled" if job.input.incremental else "run"
            (Path(folder) / CONFIG_FILE).write_text(for_the_cluster(job).to_yaml(), encoding="utf-8")
            try:
                return str(
                    self._client.submit_job(
                        entrypoint=f"{python} jobs/{script}.py {CONFIG_FILE}",
                        submission_id=submission_id,
                        runtime_env={"working_dir": folder},
                        metadata={"name": job.name, "output": job.output.path},
                    )
                )
            except RuntimeError as error:
                if submission_id is not None and "already exists" in str(error):
                    raise ConfigError(
                        f"--submission-id: {self.address} already has a job {submission_id}; choose another id, or "
                        f"see it with `gptj-batch status {submission_id}`"
                    ) from None
                raise BackendError(f"{self.address} did not take the job: {_first_line(error)}") from error

    def details(self, submission_id: str) -> "JobDetails":
        """Return what the cluster knows of a job. Raises ConfigError where it knows no such job."""
        try:
            return self._client.get_job_info(submission_id)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                raise ConfigError(
                    f"{self.address} has no job {submission_id}; `gptj-batch list` shows those that it has"
                ) from None
            raise

    def logs(self, submission_id: str) -> str:
        """Return what a job has said so far. Raises ConfigError where there is no such job."""
        self.details(submission_id)
        return str(self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str) -> None:
        """Print what a job says until it ends. Raises ConfigError where there is no such job."""
        self.details(submission_id)

        async def tail() -> None:
            async for text in self._client.tail_job_logs(submission_id):
                sys.stdout.write(text)
                sys.stdout.flush()

        asyncio.run(tail())

    def wait(self, submission_id: str) -> int:
        """Follow a job to its end and return its exit code."""
        self.follow(submission_id)
        while (details := self.details(submission_id)).status not in ENDED:
            time.sleep(POLL_S)
        return exit_code(details)

    def stop(self, submission_id: str) -> bool:
        """Ask a job to stop, and say whether it was running."""
        self.details(submission_id)
        return bool(self._client.stop_job(submission_id))

    def all(self) -> list["JobDetails"]:
        """Return the submitted jobs, the newest first."""
        submitted = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(submitted, key=lambda job: job.start_time or 0, reverse=True)


def exit_code(details: "JobDetails") -> int:
    """Return how an ended job ended; Ray's own word for it is 0 or 1."""
    if details.driver_exit_code is not None:
        return int(details.driver_exit_code)
    return 0 if details.status == "SUCCEEDED" else 1


def description(details: "JobDetails") -> list[str]:
    """Return the lines that `gptj-batch status` prints."""
    metadata = details.metadata or {}
    facts: list[tuple[str, Any]] = [
        ("job", details.submission_id),
        ("name", metadata.get("name")),
        ("status", details.status.value),
        ("exit code", details.driver_exit_code),
        ("started", _time(details.start_time)),
        ("ended", _time(details.end_time)),
        ("output", metadata.get("output")),
    ]
    output = metadata.get("output", "")
    if output and "://" not in output and (Path(OutputFolder.at(output).private) / "run.json").exists():
        facts.append(("report", OutputFolder.at(output).private / "run.json"))
    return [f"{name + ':':11}{value}" for name, value in facts if value is not None]


def row(details: "JobDetails") -> str:
    """Return a job's line in `gptj-batch list`."""
    name = (details.metadata or {}).get("name", "")
    return f"{details.submission_id}  {details.status.value:<9}  {_time(details.start_time) or '':20}  {name}"


def _time(milliseconds: int | None) -> str | None:
    return None if not milliseconds else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))


def _named_dashboard() -> str | None:
    """Return the dashboard that the environment names; RAY_ADDRESS may name what `run` connects to instead."""
    ray_address = os.environ.get("RAY_ADDRESS", "")
    is_dashboard = ray_address.startswith(("http://", "https://"))
    return os.environ.get("RAY_API_SERVER_ADDRESS") or (ray_address if is_dashboard else None)


def _check_secret(address: str, *, insecure: bool) -> None:
    """Raise ConfigError where a job would go over an open line to a cluster that anybody may use.

    Whoever can submit a job to a cluster can run any code there.
    """
    parts = urlsplit(address if "://" in address else f"http://{address}")
    has_token = os.environ.get("RAY_AUTH_MODE") == "token"
    if parts.scheme != "http" or has_token or insecure or _is_this_machine(parts.hostname or ""):
        return
    raise ConfigError(
        f"--address: {address} is another machine, over http and without a token: whoever can reach it can run code "
        "there. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or say --insecure"
    )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


def _client(address: str) -> "JobSubmissionClient":
    from pipelines.cluster import set_environment

    set_environment(address)
    with _quiet_ray():
        from ray.job_submission import JobSubmissionClient

        try:
            with _without(OVERRIDING):
                return JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster answers at {address} (--address, RAY_API_SERVER_ADDRESS, RAY_ADDRESS): "
                f"{_first_line(error)}"
            ) from error


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Take variables out of the environment for a while."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Keep Ray from logging that it uses the address it was given."""
    import logging

    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
