"""A database of either kind, and audits in it."""

import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from support.postgres import Postgres
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_PENDING,
    Audit,
    AuditCost,
    AuditSpec,
    UnitDone,
)
from unerase.v1.types_pb2 import EvaluationDescription, Finding, Observation
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.cost import picture_bytes
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.runtime.artifacts import ArtifactStore


@pytest.fixture(scope="session")
def plan(catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]) -> Plan:
    return make_plan(AuditSpec(subject="small/edited", concept="hourglass"), catalogue, store, descriptions, lambda: 1)


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(tmp_path: Path, postgres: Postgres, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"
    if request.param == "postgresql":
        url = postgres.new_database().replace("postgresql:", "postgresql+psycopg:")
    database = Database(create_engine(url))
    await database.migrate()
    yield database
    await database.close()


async def insert(database: Database, plan: Plan, request_id: str = "", created: int = 5) -> Audit:
    audit = Audit(
        id=uuid.uuid4().hex,
        request_id=request_id or uuid.uuid4().hex,
        spec=plan.spec,
        state=AUDIT_STATE_PENDING,
        units_total=len(plan.units),
        create_time=timestamp(created),
    )
    assert await database.transitions.insert(audit, "digest", plan)
    return audit


async def running(database: Database, plan: Plan, created: int = 5) -> Audit:
    audit = await insert(database, plan, created=created)
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.transitions.start(session, audit.id)
    return audit


async def record(database: Database, audit: Audit, unit: str, *observations: Observation) -> bool:
    async with AsyncSession(database.engine) as session, session.begin():
        return await database.transitions.record(
            session, audit.id, UnitDone(unit=unit), observations, [Finding(prompt=unit)]
        )


def counted_plan(plan: Plan, pictures: int) -> Plan:
    """The plan as one that is counted to make so many pictures, of 1,536 bytes each."""
    return replace(plan, cost=AuditCost(pictures=pictures), picture_bytes=picture_bytes(pictures, 32))
