"""One backend for all tests of the service: real processes, a real socket, the embedded testbed."""

import os
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import example
from serving import Running, serving
from unerase import Client
from unerase.v1.audits_pb2 import AuditSpec, Battery
from unerase.v1.types_pb2 import EvaluationRequest


def await_health(channel: grpc.Channel, service: str, serving: bool) -> None:
    """Wait for a service's health, as its watchers see it; a minute at most."""
    states = health_pb2.HealthCheckResponse
    wanted = states.SERVING if serving else states.NOT_SERVING
    watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)
    for answer in watched:
        if answer.status == wanted:
            watched.cancel()
            return
    pytest.fail(f"the watch of {service} ended")


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A backend with two packages of third parties: the example, and one that cannot be imported."""
    site = example.install(tmp_path_factory.mktemp("third-parties") / "site")
    example.put_broken(site)
    environment = {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    catalogue = example.write_catalogue(tmp_path_factory.mktemp("catalogue"), os.environ | environment)
    with serving(tmp_path_factory.mktemp("backend"), environment=environment, catalogues=[catalogue]) as running:
        yield running


@pytest.fixture(scope="session")
def client(backend: Running) -> Iterator[Client]:
    with Client(backend.address) as client:
        yield client


@pytest.fixture(scope="session")
def channel(backend: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(backend.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


def small_spec(seed_base: int = 11, *, cases: int = 8, steps: int = 6, subject: str = "testbed/uce") -> AuditSpec:
    """Return an audit of a few seconds."""
    noise = EvaluationRequest(name="noise-based")
    noise.parameters.update({"etas": [1.0, 1.5], "variance_scales": [1.0]})
    battery = Battery(evaluations=[EvaluationRequest(name="standard-prompt"), noise], allow_incomplete=True)
    return AuditSpec(
        subject=subject, concept="hourglass", cases=cases, steps=steps, seed_base=seed_base, battery=battery
    )
