"""A commit whose answer was lost: the audit was accepted, though its caller was told otherwise."""

import hashlib
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from unerase.v1.audits_pb2 import AUDIT_STATE_PENDING, Audit, AuditSpec, CreateAuditRequest
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api.audit_service import AuditServicer
from unerase_backend.coordinator.execution.admission import Admission
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.retention import Retention
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.connections import Connections
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.artifacts import ArtifactStore

SPEC = AuditSpec(subject="small/edited", concept="hourglass")


class Begun:
    """Notes which audits' workflows are to begin, in place of DBOS."""

    def __init__(self) -> None:
        self.audits: list[str] = []

    def begin(self, audit_id: str) -> None:
        self.audits.append(audit_id)


async def test_an_audit_whose_acceptance_nobody_heard_of_begins(
    tmp_path: Path, catalogue: Catalogue, store: ArtifactStore, descriptions: dict[str, EvaluationDescription]
) -> None:
    connections = Connections(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}")
    database = Database(connections)
    await database.migrate()
    lost = _lose_the_answer_of_a_commit(connections)
    plan = make_plan(SPEC, catalogue, store, descriptions, lambda: 1)
    digest = hashlib.sha256(SPEC.SerializeToString(deterministic=True)).hexdigest()
    audit = Audit(id="a", request_id="r", spec=plan.spec, state=AUDIT_STATE_PENDING, create_time=timestamp(1))
    # It is tried again, and finds itself.
    assert not await database.transitions.insert(audit, digest, plan)
    assert lost == ["lost"]
    begun: Any = Begun()
    notifications, retention = Notifications(database.audits.sequences), Retention(database, store, 0)
    admission = Admission(begun, database, catalogue, store, lambda _: Quota())
    servicer = AuditServicer(begun, database, store, notifications, retention, admission)
    context: Any = None
    answer = await servicer.CreateAudit(CreateAuditRequest(request_id="r", spec=SPEC), context)
    assert (answer.id, begun.audits) == ("a", ["a"])
    await database.close()


def _lose_the_answer_of_a_commit(connections: Connections) -> list[str]:
    """Let the server go down between the next commit that a caller asks for and its answer."""
    lost: list[str] = []

    def lose(connection: Any) -> None:
        if not lost:
            lost.append("lost")
            connection.connection.dbapi_connection.commit()
            raise psycopg.OperationalError("the connection was lost")

    for engine in connections.engines():
        sa.event.listen(engine, "commit", lose)
    return lost
