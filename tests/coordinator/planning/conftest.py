"""Plans of audits, and a database for them."""

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from google.protobuf import json_format

from support.backend import evaluations
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_PENDING,
    Audit,
    AuditCost,
    AuditSpec,
)
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import MAX_PROMPT_BYTES, Catalogue
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.runtime.artifacts import ArtifactStore

LONG = "{concept} " + "x" * (MAX_PROMPT_BYTES - 200)


@pytest.fixture(scope="session")
def everything() -> dict[str, EvaluationDescription]:
    return {name: each.description for name, each in evaluations().items()}


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    yield database
    await database.close()


def plan_of(
    catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription], **fields: object
) -> Plan:
    spec = json_format.ParseDict({"subject": "testbed/uce", "concept": "hourglass", **fields}, AuditSpec())
    return make_plan(spec, catalogue, store, descriptions, lambda: 7)


def large(catalogue: Catalogue, store: ArtifactStore) -> Catalogue:
    """The catalogue with an hourglass of 57 long prompts, 236 KB of words."""
    entry = catalogue.concepts["hourglass"].model_copy(update={"prompts": tuple(LONG + str(n) for n in range(57))})
    return replace(catalogue, concepts={**catalogue.concepts, "hourglass": entry})


async def insert(database: Database, plan: Plan, cost: AuditCost | None = None) -> Audit:
    audit = Audit(
        id=uuid.uuid4().hex,
        request_id=uuid.uuid4().hex,
        spec=plan.spec,
        state=AUDIT_STATE_PENDING,
        units_total=len(plan.units),
        create_time=timestamp(time.time_ns()),
        cost=cost,
        notes=plan.notes,
    )
    assert await database.transitions.insert(audit, "digest", plan)
    return audit


async def stored_bytes(database: Database) -> int:
    """The bytes of everything that the database holds."""
    async with database.engine.connect() as connection:
        pages = (await connection.execute(sa.text("PRAGMA page_count"))).scalar_one()
        free = (await connection.execute(sa.text("PRAGMA freelist_count"))).scalar_one()
        size = (await connection.execute(sa.text("PRAGMA page_size"))).scalar_one()
    return int((pages - free) * size)
