"""A server that asks for tokens and certificates, and calls to it."""

import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2, status_pb2

from support.coordinators import free_port
from support.registering import nothing_registered
from unerase import ClientSettings, TLSConfig
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api.audit_service import AuditServicer
from unerase_backend.coordinator.api.campaign_service import CampaignServicer
from unerase_backend.coordinator.api.metrics_server import serve_metrics
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.api.server import Server
from unerase_backend.coordinator.api.server_service import Allowed, ServerServicer
from unerase_backend.coordinator.campaigns.answers import Answers
from unerase_backend.coordinator.campaigns.conclusion import CampaignConclusion
from unerase_backend.coordinator.campaigns.creation import Creation
from unerase_backend.coordinator.campaigns.removal import CampaignRemoval
from unerase_backend.coordinator.campaigns.reports import CampaignReports
from unerase_backend.coordinator.campaigns.workflow import CampaignRunner
from unerase_backend.coordinator.execution.admission import Admission
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.retention import Retention
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.planning.cost import CostLimits
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.errors import domain_error
from unerase_backend.runtime import tokens
from unerase_backend.runtime.access import SCOPES, Gate, Quota
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.encryption import Certificates


class NoAuditor:
    """Stands where nobody comes: no call of these tests gets as far as an audit."""

    @property
    def units(self) -> "NoAuditor":
        return self

    async def descriptions(self) -> dict[str, Any]:
        return {}

    async def broken(self) -> dict[str, str]:
        return {}

    def when_ended(self, tell: Any) -> None:
        """Nothing ends."""


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
    models = ModelServicer(catalogue, store, database, None, None, nothing_registered(catalogue, store, database), None)  # type: ignore[arg-type]
    campaigns = campaign_service(database, catalogue, store)
    server = Server(audits, campaigns, models, server_info(), metrics, gate, domain_error)
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
    auditor: Any = NoAuditor()
    admission = Admission(auditor, database, catalogue, store, lambda _: Quota())
    notifications = Notifications(database.audits.sequences)
    return AuditServicer(auditor, database, store, notifications, Retention(database, store, 0), admission)


def campaign_service(database: Database, catalogue: Catalogue, store: ArtifactStore) -> CampaignServicer:
    auditor: Any = NoAuditor()
    admission = Admission(auditor, database, catalogue, store, lambda _: Quota())
    notifications = Notifications(database.campaigns.sequences)
    conclusion = CampaignConclusion(database, store)
    runner = CampaignRunner(database, auditor, admission, conclusion, notifications, Metrics())
    removal = CampaignRemoval(database, Retention(database, store, 0), 0)
    reports = CampaignReports(database, store, conclusion)
    answers = Answers(database, store, conclusion, reports)
    creation = Creation(database, admission, runner)
    return CampaignServicer(database, creation, runner, removal, notifications, reports, answers, store)


def server_info(allowed: Allowed = Allowed()) -> ServerServicer:  # noqa: B008
    """What a server of two evaluations says of itself."""

    async def descriptions() -> dict[str, EvaluationDescription]:
        return {"likelihood": EvaluationDescription(), "inpainting": EvaluationDescription()}

    return ServerServicer(descriptions, CostLimits(pictures=7), lambda tenant: Quota(audits=len(tenant)), allowed)


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


@pytest.fixture
def strangers() -> trustme.CA:
    return trustme.CA()
