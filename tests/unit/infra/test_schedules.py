"""The schedules: each starts `jobs/score_scheduled.py` on an incremental job, safely."""

import ast
import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
DAG_FILE = REPO / "infra" / "airflow" / "gptj_batch_nightly.py"


def pick(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return copy.deepcopy(found)


@pytest.fixture
def ray_cron_job(manifests):
    return pick(manifests, "RayCronJob", "gptj-batch-nightly")


@pytest.fixture
def cron_job(manifests):
    return pick(manifests, "CronJob", "gptj-batch-nightly-submit")


@pytest.fixture
def pod(cron_job):
    return cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]


@pytest.fixture
def job_text(manifests):
    return pick(manifests, "ConfigMap", "gptj-batch-scheduled")["data"]["job.yaml"]


# --- the RayCronJob ----------------------------------------------------------------------------------------------


def test_a_ray_cron_job_has_no_concurrency_policy_and_a_typo_is_caught(ray_cron_job, ray_validators):
    validator = ray_validators["ray.io/v1", "RayCronJob"]
    assert validator.is_valid(ray_cron_job)
    ray_cron_job["spec"]["concurrencyPolicy"] = "Forbid"
    assert not validator.is_valid(ray_cron_job), "where KubeRay has one, use it"


def test_the_ray_cron_job_starts_what_schedulers_start_on_the_mounted_job(ray_cron_job):
    template = ray_cron_job["spec"]["jobTemplate"]
    *command, path = template["entrypoint"].split()
    assert command == ["python", "-m", "jobs.score_scheduled"]
    pod = template["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = (each["name"] for each in pod["volumes"] if "configMap" in each)
    (mount,) = (each["mountPath"] for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume)
    assert path == f"{mount}/job.yaml"
    assert template["shutdownAfterJobFinishes"] is True and template["backoffLimit"] >= 1
    assert template["preRunningDeadlineSeconds"] < template["activeDeadlineSeconds"] < 24 * 3600


# --- the CronJob -------------------------------------------------------------------------------------------------


def test_the_cron_job_lets_no_run_overlap_and_says_when_a_missed_one_is_left_out(cron_job):
    spec = cron_job["spec"]
    assert spec["concurrencyPolicy"] == "Forbid" and spec["startingDeadlineSeconds"] >= 600
    assert spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_cron_job_submits_the_mounted_job_and_waits_for_it(cron_job, pod, manifests):
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "jobs.cli", "submit"]
    (mount,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == "job")
    assert container["args"][0] == f"{mount}/job.yaml" and "--wait" in container["args"]
    cluster = pick(manifests, "RayCluster", "gptj-batch")
    assert f"--address=http://{cluster['metadata']['name']}-head-svc:8265" in container["args"]
    assert "--insecure" not in container["args"]
    # The command itself takes these arguments.
    from jobs.cli import _parser

    options = _parser().parse_args([*container["command"][3:], *container["args"]])
    assert (options.wait, options.submission_id) == (True, "$(POD_NAME)")


def test_a_job_that_ended_with_3_is_a_failed_one_and_is_not_tried_again(cron_job, pod):
    spec = cron_job["spec"]["jobTemplate"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    (container,) = pod["containers"]
    assert rule["action"] == "FailJob"
    # Not 2: `submit` ends with it, too, where the head does not answer for a while.
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [3]}


def test_the_submitting_pod_is_as_restricted_as_the_clusters(pod, cron_job):
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 1000
    assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]} and context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"]["requests"] == container["resources"]["limits"]
    labels = cron_job["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/part-of"] == "gptj-batch", "by which the network policies let it to the head"


def test_the_token_is_a_file_that_the_clusters_secret_gives(pod, manifests):
    (container,) = pod["containers"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in environment
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "token")
    assert environment["RAY_AUTH_TOKEN_PATH"] == f"{mount['mountPath']}/auth_token" and mount["readOnly"]
    (volume,) = (each["secret"] for each in pod["volumes"] if "secret" in each)
    assert volume["secretName"] == pick(manifests, "RayCluster", "gptj-batch")["metadata"]["name"]


def test_the_submitting_image_is_the_clusters(pod, manifests):
    cluster = pick(manifests, "RayCluster", "gptj-batch")["spec"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert pod["containers"][0]["image"] == head["image"]


def test_every_volume_is_mounted_and_every_mount_has_a_volume(pod):
    assert {each["name"] for each in pod["volumes"]} == {each["name"] for each in pod["containers"][0]["volumeMounts"]}


# --- the job -----------------------------------------------------------------------------------------------------


def test_the_package_accepts_the_job_and_it_is_incremental(job_text, tmp_path):
    from pipelines.config import load_job
    from pipelines.incremental import check_settings

    path = tmp_path / "job.yaml"
    path.write_text(job_text, encoding="utf-8")
    job = load_job(path)
    check_settings(job)
    assert job.input.incremental and job.drift.max_psi is not None


def test_the_jobs_paths_are_on_volumes_of_every_node_that_runs_it(job_text, ray_cron_job):
    job = yaml.safe_load(job_text)
    cluster = ray_cron_job["spec"]["jobTemplate"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        mounts = [mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]]
        for path in (job["input"]["path"], job["model"]["path"], job["output"]["path"]):
            assert any(path.startswith(f"{mount}/") for mount in mounts), path


# --- Airflow and cron --------------------------------------------------------------------------------------------


def calls(name: str) -> dict[str, Any]:
    """The keyword arguments of the one call of a name in the DAG, as far as they are literals."""
    tree = ast.parse(DAG_FILE.read_text(encoding="utf-8"))
    (call,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    )
    return {keyword.arg or "": ast.unparse(keyword.value) for keyword in call.keywords}


def test_the_dag_compiles_starts_what_schedulers_start_and_never_two_at_once() -> None:
    compile(DAG_FILE.read_text(encoding="utf-8"), str(DAG_FILE), "exec")
    assert calls("DAG")["max_active_runs"] == "1" and calls("DAG")["catchup"] == "False"
    assert re.search(r"python -m jobs\.score_scheduled ", calls("SubmitRayJob")["entrypoint"])
    assert importlib.util.find_spec("jobs.score_scheduled")


def test_airflow_takes_the_dag() -> None:
    pytest.importorskip("airflow", reason="airflow is not installed")
    pytest.importorskip("ray_provider", reason="astro-provider-ray is not installed")
    from airflow.models import DagBag

    bag = DagBag(dag_folder=str(DAG_FILE.parent), include_examples=False)
    assert not bag.import_errors and "gptj_batch_nightly" in bag.dags


def test_operations_have_a_line_for_cron() -> None:
    text = (REPO / "infra" / "OPERATIONS.md").read_text(encoding="utf-8")
    assert re.search(r"^\s+\d+ \d+ \* \* \* .*jobs/score_scheduled\.py", text, re.MULTILINE)
