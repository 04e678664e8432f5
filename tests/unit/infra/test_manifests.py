"""The KubeRay manifests against the schemas of Kubernetes and KubeRay, and against the rules that no schema says."""

import copy
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

KUBERNETES = "1.37"

SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}  # KubeRay's schema takes any string
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")  # RFC 1035, 47 characters: KubeRay adds suffixes
TOKEN_SINCE = (2, 52)
RESOURCE_PARAMS = {"num-cpus", "num-gpus", "memory", "resources"}

JOB_SECTIONS = {"name", "input", "task", "model", "backend", "replicas", "output", "errors"}


def pick(manifests: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """A copy of the one manifest of this kind (and name), to be read or spoiled."""
    found = [each for each in manifests if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return copy.deepcopy(found[0])


def rename(document: Any, path: tuple[str | int, ...], new: str) -> None:
    *parents, old = path
    for step in parents:
        document = document[step]
    document[new] = document.pop(old)


def as_pod(group: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "pod", **group["template"]["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": group["template"]["spec"]}


# --- schemas ---------------------------------------------------------------------------------------------------


def test_every_manifest_fits_the_schema_of_its_kind(manifest, request):
    if manifest["apiVersion"].startswith("ray.io/"):
        validators = request.getfixturevalue("ray_validators")
        validators[manifest["apiVersion"], manifest["kind"]].validate(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_every_group_of_nodes_is_a_valid_pod(group):
    kubernetes_validate.validate(as_pod(group), KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("kind", "path", "typo"),
    [
        ("RayJob", ("spec", "entrypoint"), "entryPoint"),
        ("RayJob", ("spec", "rayClusterSpec", "authOptions", "mode"), "Mode"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "replicas"), "replica"),
        ("RayCluster", ("spec", "headGroupSpec", "template"), "podTemplate"),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "image"), "img"),
    ],
)
def test_a_typo_in_a_ray_manifest_is_caught(manifests, ray_validators, kind, path, typo):
    manifest = pick(manifests, kind)
    rename(manifest, path, typo)
    assert not ray_validators["ray.io/v1", kind].is_valid(manifest)


@pytest.mark.parametrize(
    ("field", "value"), [("rayStartParams", {"num-cpus": 0}), ("enableIngress", "false"), ("template", None)]
)
def test_a_wrong_type_in_a_ray_manifest_is_caught(manifests, ray_validators, field, value):
    manifest = pick(manifests, "RayCluster")
    manifest["spec"]["headGroupSpec"][field] = value
    assert not ray_validators["ray.io/v1", "RayCluster"].is_valid(manifest)


@pytest.mark.parametrize(
    ("kind", "path", "typo"),
    [
        ("Namespace", ("metadata", "labels"), "label"),
        ("PersistentVolumeClaim", ("spec", "accessModes"), "accessMode"),
        ("NetworkPolicy", ("spec", "policyTypes"), "policytypes"),
        ("ConfigMap", ("data",), "datas"),
    ],
)
def test_a_typo_in_a_core_manifest_is_caught(manifests, kind, path, typo):
    manifest = pick(manifests, kind)
    rename(manifest, path, typo)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_typo_in_a_pod_template_is_caught(manifests):
    pod = as_pod(pick(manifests, "RayCluster")["spec"]["headGroupSpec"])
    rename(pod, ("spec", "containers", 0, "securityContext", "runAsNonRoot"), "runAsNonroot")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_key_written_twice_is_caught(unique_key_loader):
    with pytest.raises(yaml.constructor.ConstructorError, match="written twice"):
        yaml.load("spec: {replicas: 1, replicas: 2}", Loader=unique_key_loader)


# --- what the operator demands beyond its schema -----------------------------------------------------------------


def cluster_faults(spec: dict[str, Any]) -> list[str]:
    faults = []
    version = tuple(int(part) for part in spec.get("rayVersion", "0").split("."))
    if spec.get("authOptions", {}).get("mode") == "token" and version < TOKEN_SINCE:
        faults.append("token authentication needs rayVersion 2.52 or newer")
    for group in spec["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            faults.append(f"{group['groupName']}: minReplicas <= replicas <= maxReplicas does not hold")
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        if group.get("resources") and RESOURCE_PARAMS & group["rayStartParams"].keys():
            faults.append("resources are said both in rayStartParams and in resources")
        if "labels" in group["rayStartParams"]:
            faults.append("labels do not belong in rayStartParams")
    return faults


def job_faults(spec: dict[str, Any]) -> list[str]:
    checks = {
        "exactly one of rayClusterSpec and clusterSelector": ("rayClusterSpec" in spec) != ("clusterSelector" in spec),
        "submissionMode is one that KubeRay knows": spec.get("submissionMode", "K8sJobMode") in SUBMISSION_MODES,
        "backoffLimit >= 0": spec.get("backoffLimit", 0) >= 0,
        "activeDeadlineSeconds > 0": spec.get("activeDeadlineSeconds", 1) > 0,
        "ttlSecondsAfterFinished >= 0": spec.get("ttlSecondsAfterFinished", 0) >= 0,
        "ttlSecondsAfterFinished only with shutdownAfterJobFinishes": not spec.get("ttlSecondsAfterFinished")
        or spec.get("shutdownAfterJobFinishes", False),
        "preRunningDeadlineSeconds < activeDeadlineSeconds": spec.get("preRunningDeadlineSeconds", 0)
        < spec.get("activeDeadlineSeconds", 1),
    }
    return [rule for rule, holds in checks.items() if not holds]


def test_every_cluster_keeps_the_operators_rules(cluster):
    assert cluster_faults(cluster) == []


def test_the_job_keeps_the_operators_rules(manifests):
    assert job_faults(pick(manifests, "RayJob")["spec"]) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rayVersion": "2.51.1"}, "token"),
        ({"rayVersion": "0"}, "token"),
        ({"workerGroupSpecs": [{"groupName": "gpu", "minReplicas": 3, "replicas": 2, "maxReplicas": 8}]}, "replicas"),
        ({"headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "resources": {"CPU": "0"}}}, "resources"),
        ({"headGroupSpec": {"rayStartParams": {"labels": "a=b"}}}, "labels"),
    ],
)
def test_a_cluster_that_breaks_a_rule_is_caught(manifests, change, fault):
    spec = pick(manifests, "RayCluster")["spec"] | change
    for group in spec["workerGroupSpecs"]:
        group.setdefault("rayStartParams", {})
    faults = cluster_faults(spec)
    assert len(faults) == 1
    assert fault in faults[0]


@pytest.mark.parametrize(
    "change",
    [
        {"clusterSelector": {"ray.io/cluster": "gptj-batch"}},
        {"submissionMode": "HttpMode"},
        {"backoffLimit": -1},
        {"ttlSecondsAfterFinished": -1},
        {"shutdownAfterJobFinishes": False},
        {"preRunningDeadlineSeconds": 10**6},
    ],
)
def test_a_job_that_breaks_a_rule_is_caught(manifests, change):
    assert len(job_faults(pick(manifests, "RayJob")["spec"] | change)) == 1


def test_a_job_without_any_cluster_is_caught(manifests):
    spec = pick(manifests, "RayJob")["spec"]
    del spec["rayClusterSpec"]
    assert len(job_faults(spec)) == 1


def test_every_cluster_asks_for_a_token(cluster):
    assert cluster["authOptions"] == {"mode": "token"}


def test_names_leave_room_for_what_kuberay_adds(manifest):
    assert DNS_LABEL.fullmatch(manifest["metadata"]["name"])


def test_the_head_works_on_no_records(cluster):
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_driver_asks_for_no_cpu_since_the_head_has_none(manifests):
    assert not pick(manifests, "RayJob")["spec"].get("entrypointNumCpus")


# --- what belongs together ---------------------------------------------------------------------------------------


def test_everything_lives_in_the_one_namespace(manifest):
    if manifest["kind"] != "Namespace":
        assert manifest["metadata"]["namespace"] == "gptj-batch"


def test_every_mount_has_its_volume_and_every_volume_its_mount(group):
    pod = group["template"]["spec"]
    mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_every_claim_and_config_map_a_pod_names_is_there(group, manifests):
    there = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    for volume in group["template"]["spec"]["volumes"]:
        if "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in there


def test_ray_versions_agree_with_the_pin_of_the_package(cluster, pyproject):
    assert f"ray[data,default]=={cluster['rayVersion']}" in pyproject["project"]["dependencies"]


def test_image_tags_name_the_release_the_ray_version_and_the_hardware(group, pyproject, repo):
    dependencies = pyproject["project"]["dependencies"]
    (ray,) = (text.partition("==")[2] for text in dependencies if text.startswith("ray["))
    source = (repo / pyproject["tool"]["hatch"]["version"]["path"]).read_text("utf-8")
    release = re.search(r'__version__ = "(.+)"', source)[1]
    for container in group["template"]["spec"]["containers"]:
        assert re.fullmatch(rf"[\w./-]+:{re.escape(release)}-ray{re.escape(ray)}-(cpu|gpu)", container["image"])


def test_all_nodes_of_a_cluster_run_one_image(cluster):
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    on_gpus = any(
        "nvidia.com/gpu" in container["resources"]["limits"]
        for group in groups
        for container in group["template"]["spec"]["containers"]
    )
    assert len(images) == 1
    assert images.pop().endswith("-gpu" if on_gpus else "-cpu")


def test_nodes_with_gpus_are_tolerated(group):
    pod = group["template"]["spec"]
    if any("nvidia.com/gpu" in container["resources"]["limits"] for container in pod["containers"]):
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


# --- the job the RayJob runs -------------------------------------------------------------------------------------


def job_text(manifests: list[dict[str, Any]]) -> str:
    return pick(manifests, "ConfigMap", "gptj-batch-job")["data"]["job.yaml"]


def test_the_entrypoint_reads_the_config_map_where_the_head_mounts_it(manifests):
    spec = pick(manifests, "RayJob")["spec"]
    *command, path = spec["entrypoint"].split()
    assert command == ["python", "-m", "jobs.run"]
    pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = (each["name"] for each in pod["volumes"] if "configMap" in each)
    (mount,) = (each["mountPath"] for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume)
    assert path == f"{mount}/job.yaml"


def test_the_job_has_the_sections_of_a_configuration(manifests):
    assert yaml.safe_load(job_text(manifests)).keys() == JOB_SECTIONS


def test_the_job_classifies_by_prompt(manifests):
    task = yaml.safe_load(job_text(manifests))["task"]
    assert (task["kind"], task["method"]) == ("classify", "prompt")


def test_a_retried_job_resumes(manifests):
    assert pick(manifests, "RayJob")["spec"]["backoffLimit"] > 0
    assert yaml.safe_load(job_text(manifests))["output"]["on_exists"] == "resume"


def test_every_path_of_the_job_is_on_a_volume_that_every_node_mounts(manifests):
    job = yaml.safe_load(job_text(manifests))
    cluster = pick(manifests, "RayJob")["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        mounts = [mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]]
        for path in (job["input"]["path"], job["model"]["path"], job["output"]["path"]):
            assert any(path.startswith(f"{mount}/") for mount in mounts), path


def test_the_package_itself_accepts_the_job(manifests, tmp_path):
    config = pytest.importorskip("pipelines.config", exc_type=ModuleNotFoundError)
    path = tmp_path / "job.yaml"
    path.write_text(job_text(manifests), encoding="utf-8")
    config.load_job(path, overrides=())
