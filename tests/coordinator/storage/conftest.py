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
from unerase.v1.models_pb2 import Model, ModelCheck, NewModel
from unerase.v1.types_pb2 import EvaluationDescription, Finding, Observation
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.cost import picture_bytes
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.leases import Leases
from unerase_backend.coordinator.storage.models import Registration
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


async def lease(database: Database, home: str) -> str:
    """Begin the lease of a coordinator, and return its id."""
    leases = Leases(database.engine, home, 60.0)
    await leases.begin()
    return leases.id


async def begin(database: Database, name: str, *, tenant: str = "", base: str = "", most: int = 0) -> bool:
    """Begin a registration."""
    new = NewModel(name=name)
    return await database.models.insert(new, f"{name} by {base}", "digest", tenant=tenant, base=base, most=most)


async def end(
    database: Database, store: ArtifactStore, found: Registration, checker: str, content: bytes = b""
) -> bool:
    """End a registration with its model."""

    async def keep(content: bytes) -> str:
        return store.put(content)

    name = found.message.name
    content = content or f"definition of {name}".encode()
    described = Model(name=name, digest=name)
    return await database.models.register(
        found, checker, content=content, described=described, check=ModelCheck(name=name), keep=keep
    )


async def registered(
    database: Database, store: ArtifactStore, name: str, *, tenant: str = "", base: str = "", content: bytes = b""
) -> None:
    """Register a model."""
    checker = await lease(database, f"of {name}")
    assert await begin(database, name, tenant=tenant, base=base)
    found = await database.models.claim(tenant, checker)
    assert found is not None
    assert await end(database, store, found, checker, content)
