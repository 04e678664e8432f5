"""What a Ray node may do: the Pod Security Standard "restricted", sizes that harm no neighbour, a closed network."""

import re

import pytest

UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
ALLOWED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim"}
SECRET_NAMES = re.compile(r"token|secret|password|credential|access_key|api_key", re.IGNORECASE)


def num_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\D*)", quantity).groups()
    return int(number) * UNITS[unit]


def containers(group):
    pod = group["template"]["spec"]
    return [*pod["containers"], *pod.get("initContainers", [])]


def empty_dir(group, mount_path):
    pod = group["template"]["spec"]
    (name,) = (each["name"] for each in pod["containers"][0]["volumeMounts"] if each["mountPath"] == mount_path)
    (volume,) = (each for each in pod["volumes"] if each["name"] == name)
    return volume["emptyDir"]


def test_pods_run_as_one_user_who_is_not_root(group):
    context = group["template"]["spec"]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 1000


def test_containers_cannot_gain_privileges(group):
    for container in containers(group):
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not context.get("privileged")


def test_containers_cannot_write_to_their_image(group):
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in containers(group))


def test_what_a_read_only_container_writes_has_a_place(group):
    (container,) = containers(group)
    assert {"name": "HOME", "value": "/tmp"} in container["env"]
    assert empty_dir(group, "/tmp").keys() == {"sizeLimit"}


def test_pods_get_no_api_token_and_share_nothing_with_their_node(group):
    pod = group["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(volume.keys() - {"name"} <= ALLOWED_VOLUMES for volume in pod["volumes"])


def test_nobody_opens_a_port_on_the_node(group):
    assert not any("hostPort" in port for container in containers(group) for port in container.get("ports", []))


def test_containers_claim_exactly_what_they_may_use(group):
    for container in containers(group):
        resources = container["resources"]
        assert {"cpu", "memory", "ephemeral-storage"} <= resources["limits"].keys()
        assert resources["requests"] == resources["limits"]


def test_the_checkpoints_cannot_be_changed_by_a_job(group):
    mounts = [each for container in containers(group) for each in container["volumeMounts"]]
    assert all(mount["readOnly"] for mount in mounts if mount["name"] == "models")


def test_the_object_store_fits_its_memory(group):
    (container,) = containers(group)
    shared_memory = empty_dir(group, "/dev/shm")
    assert shared_memory["medium"] == "Memory"
    assert int(group["rayStartParams"]["object-store-memory"]) < num_bytes(shared_memory["sizeLimit"])
    assert num_bytes(shared_memory["sizeLimit"]) < num_bytes(container["resources"]["limits"]["memory"]) / 2


def test_logs_and_spilled_objects_fit_the_disk_claimed(group):
    (container,) = containers(group)
    disk = num_bytes(container["resources"]["limits"]["ephemeral-storage"])
    assert num_bytes(empty_dir(group, "/tmp")["sizeLimit"]) < disk


def test_no_secret_is_written_into_an_environment(group):
    for container in containers(group):
        assert not [each["name"] for each in container["env"] if SECRET_NAMES.search(each["name"])]


def test_runs_are_offline_and_report_nothing(group):
    for container in containers(group):
        assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]


# --- the network -------------------------------------------------------------------------------------------------


@pytest.fixture
def policies(manifests):
    return {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"}


def test_the_namespace_enforces_the_restricted_standard(manifests):
    (namespace,) = (each for each in manifests if each["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_no_rule_allows_is_denied(policies):
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("name", ["intra-cluster", "dns"])
def test_every_node_may_reach_its_cluster_and_dns(group, policies, name):
    selected = policies[name]["podSelector"]["matchLabels"]
    assert selected.items() <= group["template"]["metadata"]["labels"].items()


def test_only_the_operator_comes_in_and_only_to_the_dashboard(policies):
    outside = {
        name: spec["ingress"] for name, spec in policies.items() if "ingress" in spec and name != "intra-cluster"
    }
    ((rule,),) = outside.values()
    assert rule["ports"] == [{"protocol": "TCP", "port": 8265}]
    (peer,) = rule["from"]
    assert peer.keys() == {"namespaceSelector", "podSelector"}


def test_the_way_out_is_https_and_not_to_the_nodes_metadata(policies):
    (rule,) = policies["object-storage"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}]
    assert "169.254.0.0/16" in rule["to"][0]["ipBlock"]["except"]


def test_the_rayjob_reads_volumes_and_needs_no_way_out(manifests):
    (job,) = (each["spec"]["rayClusterSpec"] for each in manifests if each["kind"] == "RayJob")
    for group in [job["headGroupSpec"], *job["workerGroupSpecs"]]:
        assert "gptj-batch/egress" not in group["template"]["metadata"]["labels"]
