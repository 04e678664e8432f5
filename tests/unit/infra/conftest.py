"""What the tests of infra/ read: the manifests, one by one, and validators made of KubeRay's own definitions."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

REPO = Path(__file__).resolve().parents[3]
CRDS = REPO.parent / "shared" / "kuberay-crds"

CARRIED_OVER = {
    *("type", "enum", "pattern", "required", "anyOf"),
    *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
}
HANDLED = {
    *("properties", "additionalProperties", "items", "format", "nullable"),
    *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
}
BEYOND_A_SCHEMA = {
    *("description", "default", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type"),
    "x-kubernetes-validations",  # rules in CEL: those that matter here are written by hand in test_manifests.py
}


class UniqueKeyLoader(yaml.CSafeLoader):
    """YAML as the API server takes it under strict validation: no key twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"written twice: {sorted(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def load_manifests() -> list[dict[str, Any]]:
    files = sorted((REPO / "infra" / "kuberay").glob("*.yaml"))
    return [document for file in files for document in yaml.load_all(file.read_text("utf-8"), Loader=UniqueKeyLoader)]


def strict_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a definition's schema as JSON Schema that refuses the fields an API server would silently drop."""
    unknown = schema.keys() - CARRIED_OVER - HANDLED - BEYOND_A_SCHEMA
    if unknown:
        raise ValueError(f"the definition uses {sorted(unknown)}, which is not converted yet")
    strict = {keyword: schema[keyword] for keyword in CARRIED_OVER & schema.keys()}
    if "properties" in schema:
        strict["properties"] = {name: strict_schema(child) for name, child in schema["properties"].items()}
        strict["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = strict_schema(schema["additionalProperties"])
    if "items" in schema:
        strict["items"] = strict_schema(schema["items"])
    if schema.get("format") == "int32":
        strict = {"minimum": -(2**31), "maximum": 2**31 - 1} | strict
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    if schema.get("nullable"):
        strict["type"] = [strict["type"], "null"]
    return strict


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def unique_key_loader() -> type[yaml.CSafeLoader]:
    return UniqueKeyLoader


@pytest.fixture(scope="session")
def manifests() -> list[dict[str, Any]]:
    return load_manifests()


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="session")
def ray_validators() -> dict[tuple[str, str], Draft202012Validator]:
    """(apiVersion, kind) -> validator, for the kinds of KubeRay that infra/ uses."""
    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's definitions are not beside this checkout ({CRDS})")
    validators = {}
    for file in (CRDS / "rayclusters.yaml", CRDS / "rayjobs.yaml", CRDS / "raycronjobs.yaml"):
        spec = yaml.load(file.read_text("utf-8"), Loader=yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            if version["name"] == "v1":
                schema = strict_schema(version["schema"]["openAPIV3Schema"])
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                validators[key] = Draft202012Validator(schema)
    return validators


def cluster_specs(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in manifests:
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if manifest["kind"] == "RayCluster":
            yield name, manifest["spec"]
        if manifest["kind"] == "RayJob":
            yield name, manifest["spec"]["rayClusterSpec"]
        if manifest["kind"] == "RayCronJob":
            yield name, manifest["spec"]["jobTemplate"]["rayClusterSpec"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for every `manifest`, `cluster` (spec) or `group` (head or worker group) it asks for."""
    manifests = load_manifests()
    clusters = dict(cluster_specs(manifests))
    groups = {
        f"{name}-{group.get('groupName', 'head')}": group
        for name, spec in clusters.items()
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    }
    named = {f"{manifest['kind']}/{manifest['metadata']['name']}": manifest for manifest in manifests}
    for argument, cases in {"manifest": named, "cluster": clusters, "group": groups}.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, cases.values(), ids=cases.keys())
