"""What the server shows of itself: services, health, reflection, metrics, its port."""

import inspect
import socket
import time
import urllib.request
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from support.serving import Running
from unerase import Client
from unerase._errors import error_of
from unerase_backend.coordinator.api.rooms_proxy import ROOMS
from unerase_backend.coordinator.api.server import SERVICES
from unerase_backend.serve import start
from unerase_backend.serve_settings import ServeSettings

from .conftest import await_health

INGRESSES = {
    "GenerationService": "generation.deployment:Generation",
    "ClassificationService": "classification.deployment:Classification",
    "ProbingService": "probing.deployment:Probing",
    "AttackService": "attack.deployment:Attack",
}
_HOOKS_OF_SERVE = ("check_health", "reconfigure", "record_autoscaling_stats", "record_routing_stats")


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("service", ROOMS.values(), ids=lambda service: service.name)
def test_an_ingress_has_exactly_the_rpcs_of_its_service(service: ServiceDescriptor) -> None:
    ingress = _named(f"unerase_backend.{INGRESSES[service.name]}")
    methods = {
        name: method
        for name, method in inspect.getmembers(ingress, inspect.isfunction)
        if not name.startswith("_") and name not in _HOOKS_OF_SERVE
    }
    assert methods.keys() == {method.name for method in service.methods}
    for method in service.methods:
        assert inspect.isasyncgenfunction(methods[method.name]) == method.server_streaming


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_a_service_is_served_healthy_and_reflected(channel: grpc.Channel, service: ServiceDescriptor) -> None:
    await_health(channel, service.full_name, serving=True)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.full_name)
    (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=10)
    assert service.file.serialized_pb in answer.file_descriptor_response.file_descriptor_proto
    # Served at all: whatever an empty request gives, it is not UNIMPLEMENTED.
    for method in service.methods:
        path, request = f"/{service.full_name}/{method.name}", b""
        if method.client_streaming:
            call, request = channel.stream_unary(path), iter([b""])
        else:
            call = channel.unary_stream(path) if method.server_streaming else channel.unary_unary(path)
        try:
            answer = call(request, timeout=60)
            if method.server_streaming:
                list(answer)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), error  # noqa: PT017


def test_the_whole_server_is_healthy(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
    error = error_of(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


def test_the_port_is_not_shared(backend: Running) -> None:
    host, _, port = backend.address.rpartition(":")
    server = grpc.server(None, options=[("grpc.so_reuseport", 1)])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        server.add_insecure_port(backend.address)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))


def test_the_port_is_on_loopback_only(backend: Running) -> None:
    host, _, port = backend.address.rpartition(":")
    assert host == "127.0.0.1"
    outward = socket.gethostbyname(socket.gethostname())
    if not outward.startswith("127."):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((outward, int(port)), timeout=5).close()


def test_metrics_count_calls_and_audits(backend: Running, client: Client) -> None:
    client.evaluations()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    counted = 'unerase_rpcs_total{code="OK",method="unerase.v1.AuditService/ListEvaluations"}'
    text, deadline = "", time.monotonic() + 30
    while counted not in text:  # the answer may be there before the call is counted
        assert time.monotonic() < deadline, text
        text = opener.open(backend.metrics_url, timeout=10).read().decode()
    assert 'unerase_audits{state="running"}' in text


def test_the_presets_ask_only_for_what_there_is(client: Client) -> None:
    listed = client.evaluations()
    names = {evaluation.name for evaluation in listed.evaluations}
    assert {preset.name for preset in listed.presets} == {"full", "paper", "quick", "standard"}
    for preset in listed.presets:
        assert {request.name for request in preset.evaluations} <= names
        assert {request.name for request in preset.real_size_evaluations} <= names


def test_settings_come_from_the_environment_and_unknown_ones_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNERASE_SERVE_PORT", "50123")
    assert ServeSettings().port == 50123
    monkeypatch.setenv("UNERASE_SERVE_PROT", "1")
    with pytest.raises(ValueError, match="UNERASE_SERVE_PROT"):
        ServeSettings()


def test_an_insecure_bind_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_insecure_bind"):
        start(ServeSettings(host="0.0.0.0", port=0, data_dir=tmp_path))
