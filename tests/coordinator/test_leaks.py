"""What callers are told when the backend's own parts fail: a reason, and nothing of the inside."""

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from support.coordinators import free_port
from support.fuzzing import leaks
from support.registering import nothing_registered
from unerase.v1 import audits_pb2, campaigns_pb2, models_pb2
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, Audit, AuditSpec
from unerase.v1.campaigns_pb2 import CampaignSpec
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, Concept, EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.api.server import Server
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.errors import domain_error
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.artifacts import ArtifactStore

from .api.guarded import audit_service, campaign_service, server_info

ID = "0" * 32
# Each asks the database for something.
REQUESTS: dict[str, Message] = {
    "unerase.v1.AuditService/CreateAudit": audits_pb2.CreateAuditRequest(
        request_id="a", spec=AuditSpec(subject="small/edited", concept="hourglass")
    ),
    "unerase.v1.AuditService/GetAudit": audits_pb2.GetAuditRequest(id=ID),
    "unerase.v1.AuditService/ListAudits": audits_pb2.ListAuditsRequest(),
    "unerase.v1.AuditService/WatchAudit": audits_pb2.WatchAuditRequest(id=ID),
    "unerase.v1.AuditService/CancelAudit": audits_pb2.CancelAuditRequest(id=ID),
    "unerase.v1.AuditService/DeleteAudit": audits_pb2.DeleteAuditRequest(id=ID),
    "unerase.v1.AuditService/GetReport": audits_pb2.GetReportRequest(id=ID),
    "unerase.v1.AuditService/ReadArtifact": audits_pb2.ReadArtifactRequest(id=ID, digest="0" * 64),
    "unerase.v1.CampaignService/CreateCampaign": campaigns_pb2.CreateCampaignRequest(
        request_id="a", spec=CampaignSpec(subjects=["small/edited"], concepts=["hourglass"])
    ),
    "unerase.v1.CampaignService/GetCampaign": campaigns_pb2.GetCampaignRequest(id=ID),
    "unerase.v1.CampaignService/ListCampaigns": campaigns_pb2.ListCampaignsRequest(),
    "unerase.v1.CampaignService/ListCells": campaigns_pb2.ListCellsRequest(id=ID),
    "unerase.v1.CampaignService/WatchCampaign": campaigns_pb2.WatchCampaignRequest(id=ID),
    "unerase.v1.CampaignService/CancelCampaign": campaigns_pb2.CancelCampaignRequest(id=ID),
    "unerase.v1.CampaignService/RetryCampaign": campaigns_pb2.RetryCampaignRequest(id=ID),
    "unerase.v1.CampaignService/DeleteCampaign": campaigns_pb2.DeleteCampaignRequest(id=ID),
    "unerase.v1.ModelService/ListConcepts": models_pb2.ListConceptsRequest(),
    "unerase.v1.ModelService/GetConcept": models_pb2.GetConceptRequest(name="hourglass"),
    "unerase.v1.ModelService/DeleteConcept": models_pb2.DeleteConceptRequest(name="hourglass"),
    "unerase.v1.ModelService/CreateConcept": models_pb2.CreateConceptRequest(
        concept=models_pb2.NewConcept(
            request_id="a", concept=Concept(name="mine", kind=CONCEPT_KIND_OBJECT, names=["hat"])
        )
    ),
}


@dataclass
class Failing:
    """A server whose parts can be broken."""

    address: str
    folder: Path
    database: Database
    store: ArtifactStore


@pytest.fixture
async def failing(tmp_path: Path, catalogue: Catalogue) -> AsyncIterator[Failing]:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    store = ArtifactStore(str(tmp_path / "store"))
    audits, campaigns = audit_service(database, catalogue, store), campaign_service(database, catalogue, store)
    models = ModelServicer(catalogue, store, database, None, None, nothing_registered(catalogue, store, database), None)  # type: ignore[arg-type]
    server = Server(audits, campaigns, models, server_info(), Metrics(), Gate(None), domain_error)
    port = free_port()
    await server.start("127.0.0.1", port)
    yield Failing(f"127.0.0.1:{port}", tmp_path, database, store)
    await server.stop(None)
    await database.close()


async def _answer(address: str, method: str, request: Message) -> Any:
    """Call a method and return its error."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        # A call with one answer is a stream of one.
        call: Any = channel.unary_stream(f"/{method}")(request.SerializeToString(), timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        return refused.value


def _told(error: Any) -> str:
    return f"{error.details()} {dict(error.trailing_metadata())['grpc-status-details-bin']!r}"


@pytest.mark.parametrize("method", REQUESTS)
async def test_a_database_that_fails(failing: Failing, method: str) -> None:
    with sqlite3.connect(failing.folder / "audits.sqlite") as connection:
        tables = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
        for (table,) in tables:
            connection.execute(f"drop table {table}")
    error = await _answer(failing.address, method, REQUESTS[method])
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "DATABASE_UNAVAILABLE" in _told(error)
    assert not leaks(_told(error))
    assert "unerase_audits" not in _told(error)


async def test_a_store_that_fails(
    failing: Failing, catalogue: Catalogue, descriptions: dict[str, EvaluationDescription]
) -> None:
    spec = AuditSpec(subject="small/edited", concept="hourglass")
    plan = make_plan(spec, catalogue, failing.store, descriptions, lambda: 1)
    digest = failing.store.put(b"a picture")
    plan.concept.picture_digests.append(digest)
    audit = Audit(id=ID, request_id="a", spec=plan.spec, state=AUDIT_STATE_SUCCEEDED, create_time=timestamp(1))
    assert await failing.database.transitions.insert(audit, "digest", plan)
    (path,) = failing.folder.glob(f"store/artifacts/*/{digest}")
    path.unlink()
    path.mkdir()
    # A folder where a file should be is what nobody has thought of: it has a number in the log, and no name here.
    error = await _answer(
        failing.address, "unerase.v1.AuditService/ReadArtifact", audits_pb2.ReadArtifactRequest(id=ID, digest=digest)
    )
    assert "the coordinator's log has it as" in error.details()
    assert not leaks(_told(error))
