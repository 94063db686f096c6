"""The server behind TLS and tokens: every method of every descriptor, reflection and metrics, and who gets in."""

import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from unerase import AsyncClient, Client, ClientSettings, UneraseError
from unerase.v1.audits_pb2 import Audit, AuditSpec
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, Concept, EvaluationDescription
from unerase_backend.catalogue import Catalogue, CustomConcept
from unerase_backend.coordinator.api.scopes import ANY, scope_of
from unerase_backend.coordinator.api.server import SERVICES
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.coordinator.storage.audits import Origin, timestamp
from unerase_backend.runtime import access, tokens
from unerase_backend.runtime.access import SCOPES
from unerase_backend.runtime.artifacts import ArtifactStore

from .guarded import Guarded, answer, reason_of

DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


METHODS = [(service.full_name, method) for service in SERVICES for method in service.methods]


@pytest.mark.parametrize(("service", "method"), METHODS, ids=[f"{s.split('.')[-1]}/{m.name}" for s, m in METHODS])
async def test_every_method_asks_for_its_token(guarded: Guarded, service: str, method: Any) -> None:
    scope = scope_of(f"{service}/{method.name}")
    assert scope in (*SCOPES, ANY)
    assert scope != "admin", "a method without a scope of its own is an oversight"
    async with guarded.channel() as channel:
        for token, reason in ((None, "TOKEN_MISSING"), ("wrong", "TOKEN_UNKNOWN"), ("expired", "TOKEN_EXPIRED")):
            error = await answer(channel, service, method, guarded.token.get(str(token), token))
            assert error is not None
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, reason)
        for other in set(SCOPES) - {scope, "admin"} if scope else ():
            error = await answer(channel, service, method, guarded.token[other])
            assert error is not None
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        if service.startswith("unerase.v1."):
            # The rooms behind are not there in this test: that their methods let somebody in is told elsewhere.
            for allowed in (scope or "metrics", "admin"):
                error = await answer(channel, service, method, guarded.token[allowed])
                assert error is None or error.code() not in DENIED


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_asks_for_its_token(guarded: Guarded, version: str) -> None:
    method = descriptor_pool.Default().FindMethodByName(
        f"grpc.reflection.{version}.ServerReflection.ServerReflectionInfo"
    )
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

    def begun(channel: grpc.aio.Channel, token: str | None, requests: Iterable[Any] | None) -> Any:
        call = channel.stream_stream(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        return call(requests, metadata=metadata, timeout=20)

    async def answers(token: str | None, **asked: str) -> list[Any]:
        async with guarded.channel() as channel:
            return [answer async for answer in begun(channel, token, [request(**asked)])]

    async def refusal(token: str | None) -> None:
        # Nothing is sent: a message that crosses with the refusal is an internal error of gRPC's client.
        async with guarded.channel() as channel:
            await begun(channel, token, None).read()

    async def reflected(token: str | None) -> list[str]:
        (answer,) = await answers(token, list_services="")
        return [each.name for each in answer.list_services_response.service]

    names = await reflected(guarded.token["reflection"])
    assert "unerase.v1.AuditService" in names
    # Whatever is listed can be looked up, by its own name.
    for name in names:
        (answer,) = await answers(guarded.token["reflection"], file_containing_symbol=name)
        files = [FileDescriptorProto.FromString(each) for each in answer.file_descriptor_response.file_descriptor_proto]
        assert name in [f"{file.package}.{service.name}" for file in files for service in file.service]
    assert {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"} <= set(names)
    for token, code in (
        (None, grpc.StatusCode.UNAUTHENTICATED),
        ("wrong", grpc.StatusCode.UNAUTHENTICATED),
        (guarded.token["expired"], grpc.StatusCode.UNAUTHENTICATED),
        (guarded.token["audit:read"], grpc.StatusCode.PERMISSION_DENIED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await refusal(token)
        assert refused.value.code() == code


async def test_health_is_everybodys(guarded: Guarded) -> None:
    async with guarded.channel() as channel:
        answered = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert answered.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_method_that_nobody_knows_is_unimplemented_for_all(guarded: Guarded) -> None:
    async with guarded.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/unerase.v1.AuditService/Nothing")(b"", timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_method_without_a_scope_is_an_admins() -> None:
    assert scope_of("unerase.v1.AuditService/Forgotten") == "admin"
    assert scope_of("other.Service/Method") == "admin"


async def test_two_tokens_at_once_are_none(guarded: Guarded) -> None:
    token = guarded.token["admin"]
    metadata = (("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}"))
    async with guarded.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/unerase.v1.ModelService/ListModels")(b"", metadata=metadata, timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_the_client_brings_its_token(guarded: Guarded) -> None:
    async with AsyncClient(guarded.address, settings=guarded.settings(guarded.token["audit:read"])) as client:
        assert (await client.evaluations()).presets
        with pytest.raises(UneraseError) as refused:
            await client.models()
    assert refused.value.reason == "SCOPE_MISSING"
    assert refused.value.metadata == {"scope": "model:read"}


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:50051",
        "unerase.example:443",
        "localhost.example:443",
        "127.example:443",
        "[::2]:443",
        "127.0.0.1.example",
    ],
)
def test_the_client_shows_no_token_in_the_clear(address: str) -> None:
    with pytest.raises(ValueError, match="encrypted"):
        Client(address, settings=ClientSettings(token="secret"))
    assert "secret" not in repr(ClientSettings(token="secret"))


async def test_tenants_see_their_own_audits_and_artefacts_alone(
    guarded: Guarded, catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    plan = make_plan(AuditSpec(subject="small/edited", concept="hourglass"), catalogue, store, descriptions, lambda: 1)
    digest = store.put(b"a picture")
    plan.concept.picture_digests.append(digest)
    mine, theirs = (
        Audit(id=uuid.uuid4().hex, request_id="same", spec=plan.spec, create_time=timestamp(1)) for _ in range(2)
    )
    assert await guarded.database.transitions.insert(mine, "digest", plan, Origin("acme"))
    assert await guarded.database.transitions.insert(theirs, "digest", plan, Origin("rival"))
    settings = guarded.settings(guarded.token["other"])
    async with AsyncClient(guarded.address, settings=settings) as rival:
        assert [audit.id async for audit in rival.audits()] == [theirs.id]
        assert (await rival.get_audit(theirs.id)).request_id == "same"
        assert await rival.artifact(theirs.id, digest) == b"a picture"
        calls: list[Callable[[str], Awaitable[object]]] = [
            rival.get_audit,
            rival.report,
            lambda audit: rival.artifact(audit, digest),
            rival.cancel,
            rival.delete,
            lambda audit: anext(rival.watch(audit)),
        ]
        for call in calls:
            said = []
            for audit in (mine.id, "0" * 32):
                with pytest.raises(UneraseError) as refused:
                    await call(audit)
                assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.NOT_FOUND, "AUDIT_NOT_FOUND")
                said.append(refused.value.message)
            # Nothing tells another tenant's audit from one that is not there.
            assert said[0] == said[1]
    assert await guarded.database.audits.get(mine.id) is not None


async def test_tenants_name_their_concepts_as_they_like(guarded: Guarded) -> None:
    concept = Concept(name="mine/hat", kind=CONCEPT_KIND_OBJECT, names=["hat"], prompts=["a {concept}"])
    for tenant in ("acme", "rival"):
        assert await guarded.database.concepts.insert(CustomConcept(concept, 0), "same", "digest", tenant)
    assert not await guarded.database.concepts.insert(CustomConcept(concept, 0), "another", "digest", "acme")
    assert await guarded.database.concepts.names("acme") == ["mine/hat"]
    assert await guarded.database.concepts.names() == []
    assert await guarded.database.concepts.named(["mine/hat"]) == []
    assert await guarded.database.concepts.delete("mine/hat", "rival")
    assert [custom.concept for custom in await guarded.database.concepts.named(["mine/hat"], "acme")] == [concept]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:50051", "127.1.2.3:1", "localhost:50051", "[::1]:50051", "localhost", "unix:/run/unerase"]
)
def test_on_this_machine_a_token_needs_no_tls(address: str) -> None:
    Client(address, settings=ClientSettings(token="secret"))


async def test_a_revoked_token_is_turned_away(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_LOOK_SECONDS", 0.0)
    token = tokens.create(guarded.tokens, "short", "acme", ["audit:read"], 1)
    async with AsyncClient(guarded.address, settings=guarded.settings(token)) as client:
        await client.evaluations()
        tokens.revoke(guarded.tokens, "short")
        with pytest.raises(UneraseError) as refused:
            await client.evaluations()
    assert refused.value.reason == "TOKEN_UNKNOWN"
