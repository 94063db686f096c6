"""The server behind TLS and tokens: every method of every descriptor, reflection and metrics, and who gets in."""

import asyncio
import contextlib
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.coordinators import free_port
from unerase import AsyncClient, Client, ClientSettings, TLSConfig, UneraseError
from unerase.v1.audits_pb2 import Audit, AuditSpec
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, Concept, EvaluationDescription
from unerase_backend.catalogue import Catalogue, CustomConcept
from unerase_backend.coordinator import exposition
from unerase_backend.coordinator.audits import AuditServicer
from unerase_backend.coordinator.changes import Changes
from unerase_backend.coordinator.database import Database, timestamp
from unerase_backend.coordinator.exposition import serve_metrics
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.models import ModelServicer
from unerase_backend.coordinator.plan import make_plan
from unerase_backend.coordinator.retention import Retention
from unerase_backend.coordinator.scopes import scope_of
from unerase_backend.coordinator.server import SERVICES, Server
from unerase_backend.coordinator.tables import create_engine
from unerase_backend.runtime import access, tokens
from unerase_backend.runtime.access import SCOPES, Gate, Quota
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.encryption import Certificates

DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
METHODS = [(service.full_name, method) for service in SERVICES for method in service.methods]


class NoAuditor:
    """Stands where nobody comes: no call of these tests gets as far as an audit."""

    @property
    def units(self) -> "NoAuditor":
        return self

    async def descriptions(self) -> dict[str, Any]:
        return {}


@dataclass
class Guarded:
    """A server that lets in who has a certificate's name and a token."""

    address: str
    authority: trustme.CA
    tokens: Path
    token: dict[str, str]
    """By scope; and `expired`, and `other`, which is another tenant's for everything."""
    root: bytes
    metrics: str
    database: Database

    def settings(self, token: str | None) -> ClientSettings:
        return ClientSettings(tls=TLSConfig(root_certificates=self.root), token=token)

    def channel(self) -> grpc.aio.Channel:
        options = [("grpc.enable_http_proxy", 0)]
        return grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(self.root), options=options)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def written(folder: Path, authority: trustme.CA) -> tuple[str, str]:
    """Write a certificate for loopback and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
    (folder / "certificate.pem").write_bytes(chain)
    return str(folder / "certificate.pem"), str(folder / "key.pem")


@pytest.fixture(scope="module")
async def guarded(
    tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue, store: ArtifactStore, authority: trustme.CA
) -> AsyncIterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    database = Database(create_engine(f"sqlite+aiosqlite:///{folder / 'audits.sqlite'}"))
    await database.migrate()
    file = folder / "tokens.json"
    made = {scope: tokens.create(file, scope.replace(":", "-"), "acme", [scope], 1) for scope in SCOPES}
    made["other"] = tokens.create(file, "other", "rival", list(SCOPES), 1)
    made["expired"] = tokens.create(file, "expired", "acme", list(SCOPES), 1e-9)
    certificates = Certificates.of(*written(folder, authority), "")
    assert certificates is not None
    metrics, gate = Metrics(), Gate(file)
    audits = audit_service(database, catalogue, store)
    server = Server(audits, ModelServicer(catalogue, store, database, None), metrics, gate)  # type: ignore[arg-type]
    port, metrics_port = free_port(), free_port()
    await server.start("127.0.0.1", port, certificates)
    stop = serve_metrics(metrics, gate, "127.0.0.1", metrics_port, certificates)
    yield Guarded(
        f"127.0.0.1:{port}",
        authority,
        file,
        made,
        authority.cert_pem.bytes(),
        f"https://127.0.0.1:{metrics_port}/metrics",
        database,
    )
    stop()
    await server.stop(None)
    await database.close()


def audit_service(database: Database, catalogue: Catalogue, store: ArtifactStore) -> AuditServicer:
    retention = Retention(database, store, 0)
    return AuditServicer(
        NoAuditor(), database, catalogue, store, Changes(database.sequences), retention, lambda _: Quota()
    )  # type: ignore[arg-type]


async def answer(
    channel: grpc.aio.Channel, service: str, method: Any, token: str | None
) -> grpc.aio.AioRpcError | None:
    """Call a method with an empty request; the error, if one comes."""
    kinds = {
        (False, False): "unary_unary",
        (False, True): "unary_stream",
        (True, False): "stream_unary",
        (True, True): "stream_stream",
    }
    open_ = getattr(channel, kinds[method.client_streaming, method.server_streaming])
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    request: Any = iter([b""]) if method.client_streaming else b""
    call = open_(f"/{service}/{method.name}")(request, metadata=metadata, timeout=20)
    try:
        if method.server_streaming:
            async for _ in call:
                break
            call.cancel()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    return None


def reason_of(error: grpc.aio.AioRpcError) -> str:
    trailing = dict(error.trailing_metadata() or ())
    for detail in status_pb2.Status.FromString(trailing["grpc-status-details-bin"]).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


@pytest.mark.parametrize(("service", "method"), METHODS, ids=[f"{s.split('.')[-1]}/{m.name}" for s, m in METHODS])
async def test_every_method_asks_for_its_token(guarded: Guarded, service: str, method: Any) -> None:
    scope = scope_of(f"{service}/{method.name}")
    assert scope in SCOPES
    assert scope != "admin", "a method without a scope of its own is an oversight"
    async with guarded.channel() as channel:
        for token, reason in ((None, "TOKEN_MISSING"), ("wrong", "TOKEN_UNKNOWN"), ("expired", "TOKEN_EXPIRED")):
            error = await answer(channel, service, method, guarded.token.get(str(token), token))
            assert error is not None
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, reason)
        for other in set(SCOPES) - {scope, "admin"}:
            error = await answer(channel, service, method, guarded.token[other])
            assert error is not None
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        if service.startswith("unerase.v1."):
            # The rooms behind are not there in this test: that their methods let somebody in is told elsewhere.
            for allowed in (scope, "admin"):
                error = await answer(channel, service, method, guarded.token[allowed])
                assert error is None or error.code() not in DENIED


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_asks_for_its_token(guarded: Guarded, version: str) -> None:
    async def answers(token: str | None, **asked: str) -> list[Any]:
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        method = descriptor_pool.Default().FindMethodByName(
            f"grpc.reflection.{version}.ServerReflection.ServerReflectionInfo"
        )
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        async with guarded.channel() as channel:
            call = channel.stream_stream(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )(iter([request(**asked)]), metadata=metadata, timeout=20)
            return [answer async for answer in call]

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
            await reflected(token)
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
    assert await guarded.database.insert(mine, "digest", plan, "acme")
    assert await guarded.database.insert(theirs, "digest", plan, "rival")
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
    assert await guarded.database.get(mine.id) is not None


async def test_tenants_name_their_concepts_as_they_like(guarded: Guarded) -> None:
    concept = Concept(name="mine/hat", kind=CONCEPT_KIND_OBJECT, names=["hat"], prompts=["a {concept}"])
    for tenant in ("acme", "rival"):
        assert await guarded.database.custom.insert(CustomConcept(concept, 0), "same", "digest", tenant)
    assert not await guarded.database.custom.insert(CustomConcept(concept, 0), "another", "digest", "acme")
    assert await guarded.database.custom.names("acme") == ["mine/hat"]
    assert await guarded.database.custom.names() == []
    assert await guarded.database.custom.named(["mine/hat"]) == []
    assert await guarded.database.custom.delete("mine/hat", "rival")
    assert [custom.concept for custom in await guarded.database.custom.named(["mine/hat"], "acme")] == [concept]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:50051", "127.1.2.3:1", "localhost:50051", "[::1]:50051", "localhost", "unix:/run/unerase"]
)
def test_on_this_machine_a_token_needs_no_tls(address: str) -> None:
    Client(address, settings=ClientSettings(token="secret"))


async def test_a_client_that_does_not_encrypt_gets_nothing(guarded: Guarded) -> None:
    async with AsyncClient(guarded.address, settings=ClientSettings(timeout_seconds=3)) as client:
        with pytest.raises(UneraseError) as refused:
            await client.models()
    assert refused.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_a_revoked_token_is_turned_away(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_LOOK_SECONDS", 0.0)
    token = tokens.create(guarded.tokens, "short", "acme", ["audit:read"], 1)
    async with AsyncClient(guarded.address, settings=guarded.settings(token)) as client:
        await client.evaluations()
        tokens.revoke(guarded.tokens, "short")
        with pytest.raises(UneraseError) as refused:
            await client.evaluations()
    assert refused.value.reason == "TOKEN_UNKNOWN"


def fetched(url: str, root: bytes, token: str | None) -> tuple[int, str]:
    request = urllib.request.Request(url)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    context = ssl.create_default_context(cadata=root.decode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_metrics_ask_for_their_token(guarded: Guarded) -> None:
    assert fetched(guarded.metrics, guarded.root, guarded.token["metrics"])[1].count("unerase_rpcs_total")
    assert fetched(guarded.metrics, guarded.root, guarded.token["admin"])[0] == 200
    assert fetched(guarded.metrics, guarded.root, None)[0] == 401
    assert fetched(guarded.metrics, guarded.root, "wrong")[0] == 401
    assert fetched(guarded.metrics, guarded.root, guarded.token["expired"])[0] == 401
    assert fetched(guarded.metrics, guarded.root, guarded.token["audit:read"])[0] == 403
    assert fetched(guarded.metrics.replace("/metrics", "/"), guarded.root, guarded.token["metrics"])[0] == 404


async def test_metrics_answer_however_many_say_nothing(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    # Who says a little now and then has as long as it likes.
    monkeypatch.setattr(exposition._Handler, "timeout", 300)
    port = urllib.parse.urlsplit(guarded.metrics).port
    before = threading.active_count()
    with contextlib.ExitStack() as silent:
        for _ in range(3 * exposition.MAX_CONNECTIONS):
            silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        for _ in range(5):
            assert (await asyncio.to_thread(fetched, guarded.metrics, guarded.root, guarded.token["metrics"]))[0] == 200
        # Some that were ended may not have met their end yet, and those of to_thread count as well.
        assert threading.active_count() - before <= 2 * exposition.MAX_CONNECTIONS


@pytest.fixture
def strangers() -> trustme.CA:
    return trustme.CA()


async def test_mtls_lets_in_whose_certificate_is_known(
    tmp_path: Path, authority: trustme.CA, strangers: trustme.CA, catalogue: Catalogue, store: ArtifactStore
) -> None:
    (tmp_path / "clients.pem").write_bytes(authority.cert_pem.bytes())
    certificates = Certificates.of(*written(tmp_path, authority), str(tmp_path / "clients.pem"))
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    audits = audit_service(database, catalogue, store)
    server = Server(audits, ModelServicer(catalogue, store, database, None), Metrics(), Gate(None))  # type: ignore[arg-type]
    port = free_port()
    await server.start("127.0.0.1", port, certificates)

    async def presets(issuer: trustme.CA | None) -> int:
        issued = issuer.issue_cert("client.example") if issuer else None
        tls = TLSConfig(
            root_certificates=authority.cert_pem.bytes(),
            client_certificate=issued.cert_chain_pems[0].bytes() if issued else None,
            client_key=issued.private_key_pem.bytes() if issued else None,
        )
        settings = ClientSettings(tls=tls, timeout_seconds=3)
        async with AsyncClient(f"127.0.0.1:{port}", settings=settings) as client:
            return len((await client.evaluations()).presets)

    try:
        assert await presets(authority)
        for stranger in (None, strangers):
            with pytest.raises(UneraseError) as refused:
                await presets(stranger)
            assert refused.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        # Renewed in place, by another authority: the next connection meets the new one.
        written(tmp_path, strangers)
        tls = TLSConfig(
            root_certificates=strangers.cert_pem.bytes(),
            client_certificate=(issued := authority.issue_cert("client.example")).cert_chain_pems[0].bytes(),
            client_key=issued.private_key_pem.bytes(),
        )
        async with AsyncClient(f"127.0.0.1:{port}", settings=ClientSettings(tls=tls, timeout_seconds=10)) as client:
            assert (await client.evaluations()).presets
    finally:
        await server.stop(None)
        await database.close()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, authority: trustme.CA) -> None:
    certificate, _ = written(tmp_path / "one", authority)
    _, key = written(tmp_path / "other", authority)
    with pytest.raises(ssl.SSLError):
        Certificates.of(certificate, key, "")
    assert Certificates.of("", "", "") is None
