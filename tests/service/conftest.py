"""One backend for all tests of the service: real processes, a real socket, the embedded testbed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider

from support import example
from support.collector import Collector, collecting
from support.serving import Running, serving
from unerase import Client
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, AuditSpec, Battery
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
def collector() -> Iterator[Collector]:
    """Where the backend sends its traces."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that models may be registered from."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory, collector: Collector, models_folder: Path) -> Iterator[Running]:
    """A backend that traces and writes JSON logs, with two packages of third parties: the example, and a broken one."""
    site = example.install(tmp_path_factory.mktemp("third-parties") / "site")
    example.put_broken(site)
    environment = {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    catalogue = example.write_catalogue(tmp_path_factory.mktemp("catalogue"), os.environ | environment)
    options = {"catalogues": [catalogue], "log_format": "json", "trace_endpoint": collector.endpoint}
    options["model_roots"] = [str(models_folder)]
    with serving(tmp_path_factory.mktemp("backend"), environment=environment, **options) as running:
        yield running


@pytest.fixture(scope="session")
def client(backend: Running) -> Iterator[Client]:
    with Client(backend.address) as client:
        yield client


@pytest.fixture(scope="session")
def channel(backend: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(backend.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


@dataclass(frozen=True)
class Traced:
    """An audit with an attack, asked for within a span of its caller's."""

    audit: str
    seed_base: int
    trace: str
    span: str


@pytest.fixture(scope="session")
def traced(client: Client) -> Traced:
    spec = small_spec(seed_base=4242)
    attack = EvaluationRequest(name="textual-inversion")
    attack.parameters.update({"steps": 3})
    spec.battery.evaluations.append(attack)
    with TracerProvider().get_tracer("caller").start_as_current_span("look at a model") as span:
        ended = client.audit(spec, timeout=240)
        context = span.get_span_context()
    assert ended.state == AUDIT_STATE_SUCCEEDED, ended
    return Traced(ended.id, spec.seed_base, f"{context.trace_id:032x}", f"{context.span_id:016x}")


def small_spec(seed_base: int = 11, *, cases: int = 8, steps: int = 6, subject: str = "testbed/uce") -> AuditSpec:
    """Return an audit of a few seconds."""
    noise = EvaluationRequest(name="noise-based")
    noise.parameters.update({"etas": [1.0, 1.5], "variance_scales": [1.0]})
    battery = Battery(evaluations=[EvaluationRequest(name="standard-prompt"), noise], allow_incomplete=True)
    return AuditSpec(
        subject=subject, concept="hourglass", cases=cases, steps=steps, seed_base=seed_base, battery=battery
    )
