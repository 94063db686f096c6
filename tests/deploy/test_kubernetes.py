"""What `kubectl kustomize` makes of deploy/kubernetes: valid objects that belong together, and fence Ray in."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from unerase_backend.catalogue import Catalogue
from unerase_backend.serve_config import check

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = {"gpu": "cluster.yaml", "cpu": "cpu.yaml"}
VERSION = "1.34"
RAYSERVICE = json.loads(Path(__file__).with_name("rayservice.schema.json").read_text())

kustomize = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not there to build overlays")


def _built(overlay: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)]
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(built.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def objects(overlay: str) -> list[dict[str, Any]]:
    return _built(overlay)


def _one(objects: list[dict[str, Any]], kind: str, name: str = "unerase") -> dict[str, Any]:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def _groups(service: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def validate(thing: dict[str, Any]) -> None:
    """Check an object strictly; the pods of a RayService as those of a Kubernetes PodTemplate."""
    if thing["kind"] != "RayService":
        kubernetes_validate.validate(thing, VERSION, strict=True)
        return
    jsonschema.Draft202012Validator(RAYSERVICE).validate(thing)
    for group in _groups(thing):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(template, VERSION, strict=True)


@kustomize
def test_every_object_is_valid(objects: list[dict[str, Any]]) -> None:
    kinds = [each["kind"] for each in objects]
    assert sorted(kinds) == sorted(
        ["Namespace", "ConfigMap", "Service", "RayService"] + 2 * ["NetworkPolicy", "PodDisruptionBudget"]
    )
    for each in objects:
        validate(each)
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "unerase"


@kustomize
@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.enFrom", []),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.ports.0.containerPort", "6379"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.template.spec.securityContext.runAsRoot", False),
        ("spec.rayClusterConfig.workerGroupSpecs.0.minReplica", 1),
        ("spec.rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterConfig.authOptions.mode", "Token"),
        ("spec.upgradeStrategy.typ", "None"),
        ("spec.serveConfig", ""),
    ],
)
def test_a_wrong_field_of_the_service_is_found(path: str, wrong: Any) -> None:
    service = copy.deepcopy(_one(_built("cpu"), "RayService"))
    *above, key = path.split(".")
    at: Any = service
    for part in above:
        at = at[int(part)] if part.isdigit() else at[part]
    at[key] = wrong
    with pytest.raises(jsonschema.ValidationError):
        validate(service)


@kustomize
def test_the_applications_are_those_of_the_serve_config(objects: list[dict[str, Any]], overlay: str) -> None:
    spec = _one(objects, "RayService")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    assert config == yaml.safe_load((DEPLOY / "serve" / OVERLAYS[overlay]).read_text())
    assert list(check(config)) == []
    # KubeRay's readiness probes ask the proxy of every node.
    assert (config["proxy_location"], config["http_options"]["port"]) == ("EveryNode", 8000)
    assert spec["rayClusterConfig"]["rayVersion"] == ray.__version__


@kustomize
def test_what_the_pods_mount_is_where_the_applications_look(objects: list[dict[str, Any]], overlay: str) -> None:
    service = _one(objects, "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    head, *workers = (group["template"]["spec"] for group in _groups(service))

    def mounted(pod: dict[str, Any], path: str) -> bool:
        return any(path.startswith(mount["mountPath"] + "/") for mount in pod["containers"][0]["volumeMounts"])

    for application in config["applications"]:
        args = application["args"]
        for path in args.get("catalogues", ()):
            assert all(mounted(pod, path) for pod in [head, *workers])
        for key in ("state", "tls_certificate", "tls_key", "tokens"):
            assert key not in args or mounted(head, args[key])
        if application["name"] == "coordinator":
            (deployment,) = application["deployments"]
            assert deployment["ray_actor_options"]["resources"] == {"coordinator": 1}
            ports = {port["name"]: port["containerPort"] for port in head["containers"][0]["ports"]}
            assert (ports["grpc"], ports["metrics"]) == (args["port"], args["metrics_port"])
    started = service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]
    # As a shell reads it, which KubeRay hands it to.
    assert json.loads(json.loads(started["resources"].strip("'"))) == {"coordinator": 1}
    gpus = {pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in workers}
    assert gpus == {"1" if overlay == "gpu" else None}


@kustomize
def test_no_pod_runs_as_root_or_bears_a_secret_in_clear(objects: list[dict[str, Any]]) -> None:
    service = _one(objects, "RayService")
    for group in _groups(service):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert all(not container["securityContext"]["allowPrivilegeEscalation"] for container in pod["containers"])
    assert not re.search(r"(?i)password|secret_access|postgresql://", yaml.safe_dump(objects))


@kustomize
def test_selectors_find_their_pods_and_only_named_ports_are_open(objects: list[dict[str, Any]]) -> None:
    service = _one(objects, "RayService")
    head, *workers = (group["template"]["metadata"]["labels"] for group in _groups(service))

    def finds(selector: dict[str, str], labels: dict[str, str]) -> bool:
        return selector.items() <= labels.items()

    for kind, selector in [
        ("Service", _one(objects, "Service")["spec"]["selector"]),
        (
            "PodDisruptionBudget",
            _one(objects, "PodDisruptionBudget", "unerase-coordinator")["spec"]["selector"]["matchLabels"],
        ),
    ]:
        assert finds(selector, head), kind
        assert not any(finds(selector, labels) for labels in workers), kind
    budget = _one(objects, "PodDisruptionBudget", "unerase-worker")["spec"]["selector"]["matchLabels"]
    assert [finds(budget, labels) for labels in [head, *workers]] == [False] + [True] * len(workers)

    opened: dict[str, set[int]] = {"head": set(), "workers": set()}
    for policy in (each for each in objects if each["kind"] == "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        for rule in policy["spec"]["ingress"]:
            if "ports" not in rule:
                # Everything, for the cluster's own pods alone.
                assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "unerase"}}}]
                continue
            ports = {port["port"] for port in rule["ports"]}
            for whose, labels in [("head", head), *(("workers", worker) for worker in workers)]:
                opened[whose] |= ports if finds(selector, labels) else set()
    assert opened == {"head": {50051, 9464, 8080, 8265, 8000}, "workers": {8080, 8265, 8000}}


def test_the_examples_are_valid() -> None:
    secrets = list(yaml.safe_load_all((KUBERNETES / "secrets.example.yaml").read_text()))
    for secret in secrets:
        validate(secret)
    assert {secret["metadata"]["name"] for secret in secrets} == {
        "unerase-environment",
        "unerase-tls",
        "unerase-tokens",
    }
    loaded = Catalogue.load([str(KUBERNETES / "base" / "catalogue.yaml")])
    assert loaded.models.keys() == Catalogue.load(()).models.keys()
