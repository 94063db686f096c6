"""Every RPC under requests that were made to break it: what comes back is an answer or a refusal by the rules.

The requests come from `fuzzing`: valid ones with fields spoilt, arbitrary ones, bytes that are none. What is accepted
is given up at once, so that nothing runs on.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from support.fuzzing import FUZZ, assert_lawful, hostile, leaks
from unerase import Client
from unerase.v1 import audits_pb2, campaigns_pb2, models_pb2
from unerase.v1.types_pb2 import Concept
from unerase_backend.catalogue import EMBEDDED
from unerase_backend.coordinator.api.server import SERVICES

from .conftest import Running, small_spec
from .valid_requests import campaign_spec, entry, new_concept, valid_requests

METHODS = {f"{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
# What a method does with a request that it accepts is not at stake here.
SECONDS = 1.0


@pytest.fixture(scope="module")
def known(client: Client, models_folder: Path) -> dict[str, str]:
    """An audit that has ended, pictures of it and of its concept, a campaign that has ended, and a registered model."""
    audit = client.create_audit(small_spec(seed_base=77, cases=1, steps=2))
    list(client.watch(audit.id, timeout=120))
    content = client.report_message(audit.id).content
    campaign = client.campaign(campaign_spec(), timeout=240)
    assert campaign.state == campaigns_pb2.CAMPAIGN_STATE_SUCCEEDED, campaign
    folder = shutil.copytree(EMBEDDED.parent / "reference", models_folder / "fuzzed")
    registered = client.register_model("own/fuzzed", entry(folder), timeout=120)
    assert registered.state == models_pb2.REGISTRATION_STATE_REGISTERED, registered
    return {
        "audit": audit.id,
        "digest": content.pictures[0].digest,
        "concept": content.concept.picture_digests[0],
        "campaign": campaign.id,
        "model": registered.name,
        "folder": str(folder),
    }


@pytest.fixture(scope="module")
def valid(client: Client, known: dict[str, str]) -> dict[str, Message]:
    """One request of each method that would be accepted, as many fields set as can be."""
    requests = valid_requests(client, known)
    assert requests.keys() == {method.name for method in METHODS.values()}
    return requests


@pytest.fixture(scope="module")
def unharmed(backend: Running) -> Iterator[None]:
    """Every process that is there before is there afterwards, and answers."""
    rooms = ("coordinator", "generation", "classification", "probing", "attack")
    before = {room: [process.pid for process in backend.replicas(room)] for room in rooms}
    yield
    assert {room: [process.pid for process in backend.replicas(room)] for room in rooms} == before


def _calls(channel: grpc.Channel, path: str, method: Any) -> Callable[[bytes], Any]:
    """Return what makes one call: of a stream the first few answers, of whatever was accepted no more."""

    def call(request: bytes) -> Any:
        if method.client_streaming:
            return channel.stream_unary(f"/{path}")(iter([request]), timeout=30)
        if not method.server_streaming:
            return channel.unary_unary(f"/{path}")(request, timeout=30)
        answers = channel.unary_stream(f"/{path}")(request, timeout=SECONDS)
        try:
            return [answer for answer, _ in zip(answers, range(4), strict=False)]
        finally:
            answers.cancel()

    return call


@pytest.mark.parametrize("path", METHODS, ids=[path.rpartition(".")[2] for path in METHODS])
@pytest.mark.usefixtures("unharmed")
def test_every_method_refuses_by_the_rules(
    channel: grpc.Channel, client: Client, valid: dict[str, Message], path: str
) -> None:
    method = METHODS[path]
    call = _calls(channel, path, method)

    @FUZZ
    @given(request=hostile(valid[method.name]))
    def refuse(request: bytes) -> None:
        answers: list[Any] = []
        assert_lawful(lambda: answers.append(call(request)))
        if answers:
            _give_up(client, method.name, answers[0])

    refuse()
    assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1


def _give_up(client: Client, method: str, answer: bytes) -> None:
    """End what a method has begun; what was only planned has no id."""
    match method:
        case "CreateAudit":
            if audit := audits_pb2.Audit.FromString(answer).id:
                client.cancel(audit)
        case "CreateCampaign":
            if campaign := campaigns_pb2.Campaign.FromString(answer).id:
                client.cancel_campaign(campaign)
        case "CreateConcept":
            client.delete_concept(Concept.FromString(answer).name)
        case "RegisterModel":
            client.delete_model(models_pb2.ModelRegistration.FromString(answer).name)


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_refuses_by_the_rules(channel: grpc.Channel, method: str) -> None:
    open_ = channel.unary_unary if method == "Check" else channel.unary_stream
    call = open_(f"/grpc.health.v1.Health/{method}")

    def answered(request: bytes) -> None:
        if method == "Check":
            call(request, timeout=10)
        else:
            watch = call(request, timeout=10)
            next(watch)
            watch.cancel()

    @FUZZ
    @given(request=hostile(health_pb2.HealthCheckRequest(service="unerase.v1.AuditService")))
    def refuse(request: bytes) -> None:
        assert_lawful(lambda: answered(request))

    refuse()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_refuses_by_the_rules(channel: grpc.Channel, version: str) -> None:
    reflect = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    valid = reflection_pb2.ServerReflectionRequest(host="", file_containing_symbol="unerase.v1.AuditService")

    def reflected(requests: list[bytes]) -> None:
        for answer in reflect(iter(requests), timeout=10):
            error = reflection_pb2.ServerReflectionResponse.FromString(answer).error_response
            assert not leaks(error.error_message)

    @FUZZ
    @given(requests=st.lists(hostile(valid), max_size=3))
    def refuse(requests: list[bytes]) -> None:
        assert_lawful(lambda: reflected(requests))

    refuse()


def test_an_upload_in_any_order_is_refused_by_the_rules(channel: grpc.Channel, client: Client) -> None:
    create = channel.stream_unary("/unerase.v1.ModelService/CreateConcept")
    piece = models_pb2.CreateConceptRequest(
        picture=models_pb2.PictureChunk(chunk=b"\x89PNG\r\n\x1a\n", last=True, near_miss=True, tile=32)
    )
    described = models_pb2.CreateConceptRequest(concept=new_concept())
    part = hostile(piece) | hostile(described) | st.just(described.SerializeToString())

    @FUZZ
    @given(requests=st.lists(part, max_size=6))
    def refuse(requests: list[bytes]) -> None:
        answers: list[bytes] = []
        assert_lawful(lambda: answers.append(create(iter(requests), timeout=30)))
        for answer in answers:
            client.delete_concept(Concept.FromString(answer).name)

    refuse()
