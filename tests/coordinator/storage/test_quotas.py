"""Quotas: what a tenant's audits count, in flight, ended and deleted."""

import asyncio
import time
import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from unerase.v1.audits_pb2 import (
    Audit,
    UnitDone,
)
from unerase.v1.types_pb2 import Observation
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.audits import Origin, timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.errors import ExhaustedError

from .conftest import counted_plan, record, running


async def test_a_quota_counts_a_tenants_own_audits_that_have_not_ended(database: Database, plan: Plan) -> None:
    quota = Quota(audits=3)

    async def insert(tenant: str) -> Audit:
        audit = Audit(id=uuid.uuid4().hex, request_id=uuid.uuid4().hex, create_time=timestamp(time.time_ns()))
        assert await database.transitions.insert(audit, "digest", plan, Origin(tenant), quota)
        return audit

    # Those that come at once are counted one after another.
    answers = await asyncio.gather(*(insert("acme") for _ in range(8)), return_exceptions=True)
    audits = [answer for answer in answers if isinstance(answer, Audit)]
    refused = [answer for answer in answers if isinstance(answer, ExhaustedError)]
    assert (len(audits), len(refused)) == (3, 5)
    assert {(error.reason, error.metadata["limit"]) for error in refused} == {("QUOTA_AUDITS", "3")}
    assert all(error.retry_after_seconds for error in refused)
    await insert("rival")
    await database.transitions.cancel(audits[0].id)
    await insert("acme")


async def test_an_audit_that_is_asked_for_again_is_not_refused_for_its_own_quota(
    database: Database, plan: Plan
) -> None:
    """As where the answer of a commit was lost, or a client asks again while its first call is under way."""
    quota = Quota(audits=1)
    audit = Audit(id="a", request_id="r", create_time=timestamp(1))
    assert await database.transitions.insert(audit, "digest", plan, Origin("acme"), quota)
    again = Audit(id="b", request_id="r", create_time=timestamp(2))
    assert not await database.transitions.insert(again, "digest", plan, Origin("acme"), quota)


@pytest.mark.parametrize(
    ("quota", "reason"), [({"pictures_per_day": 10}, "QUOTA_PICTURES"), ({"bytes": 10 * 1536}, "QUOTA_BYTES")]
)
async def test_a_quota_counts_what_is_in_flight_before_it_is_made(
    database: Database, plan: Plan, quota: dict[str, int], reason: str
) -> None:
    async def insert(pictures: int = 4, tenant: str = "acme") -> Audit:
        audit = Audit(id=uuid.uuid4().hex, request_id=uuid.uuid4().hex, create_time=timestamp(time.time_ns()))
        counted = counted_plan(plan, pictures)
        assert await database.transitions.insert(audit, "digest", counted, Origin(tenant), Quota(**quota))
        return audit

    first, _ = await insert(), await insert()
    # Nothing is made, and yet a third would be too much; one that fits is let in.
    with pytest.raises(ExhaustedError, match=r"(2|3,072) of the quota of [\d,]+ .* are left") as caught:
        await database.transitions.check("acme", Quota(**quota), counted_plan(plan, 4))
    assert "used up" not in caught.value.message
    with pytest.raises(ExhaustedError) as caught:
        await insert()
    assert (caught.value.reason, caught.value.retry_after_seconds) == (reason, 30.0)
    await database.transitions.check("acme", Quota(**quota), counted_plan(plan, 2))
    await insert(tenant="rival")
    # What an audit did not make is free once it has ended.
    await database.transitions.cancel(first.id)
    await insert()
    # Waiting does not help an audit that is too large by itself.
    with pytest.raises(ExhaustedError, match="fewer cases") as caught:
        await insert(11, "lonely")
    assert caught.value.retry_after_seconds is None


@pytest.mark.parametrize(
    ("quota", "reason"), [({"pictures_per_day": 5}, "QUOTA_PICTURES"), ({"bytes": 5 * 1536}, "QUOTA_BYTES")]
)
async def test_a_quota_counts_pictures_and_their_bytes(
    database: Database, plan: Plan, quota: dict[str, int], reason: str
) -> None:
    async def insert(created: int) -> Audit:
        audit = Audit(id=uuid.uuid4().hex, request_id=uuid.uuid4().hex, create_time=timestamp(created))
        assert await database.transitions.insert(audit, "digest", counted_plan(plan, 4), Origin("acme"), Quota(**quota))
        return audit

    audit = await insert(time.time_ns())
    # "grey" is looked at twice and made once.
    observations = [Observation(picture_digest=digest) for digest in ("a", "b", "grey", "grey", "")]
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.transitions.start(session, audit.id)
        done = UnitDone(unit=plan.units[0].id)
        assert await database.transitions.record(
            session, audit.id, done, observations, [], dict.fromkeys(("a", "b", "grey"), 1536)
        )
    await database.transitions.cancel(audit.id)
    with pytest.raises(ExhaustedError) as caught:
        await insert(time.time_ns())
    assert (caught.value.reason, caught.value.metadata["used"]) == (reason, str(3 * (1536 if "bytes" in quota else 1)))
    assert await database.transitions.delete(audit.id)
    if "bytes" in quota:
        await insert(time.time_ns())
        return
    # What was made today was made, whatever is deleted.
    with pytest.raises(ExhaustedError) as caught:
        await insert(time.time_ns())
    assert (caught.value.reason, caught.value.metadata["used"]) == (reason, "3")
    assert 86000 < (caught.value.retry_after_seconds or 0) <= 86400
    await database.transitions.check("rival", Quota(**quota), counted_plan(plan, 4))


async def test_what_deleted_audits_made_is_forgotten_after_a_day(
    database: Database, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota, now = Quota(pictures_per_day=1), time.time_ns()
    for created in (now, now - 2 * 86400 * 10**9):
        audit = await running(database, plan, created)
        await record(database, audit, plan.units[0].id, Observation(picture_digest="d"))
        await database.transitions.cancel(audit.id)
        assert await database.transitions.delete(audit.id)
    async with database.engine.connect() as connection:
        kept = sa.select(tables.spent.c.create_time, tables.spent.c.pictures)
        assert (await connection.execute(kept)).all() == [(now, 1)]
    with pytest.raises(ExhaustedError):
        await database.transitions.check("", quota, counted_plan(plan, 1))
    monkeypatch.setattr(time, "time_ns", lambda: now + 2 * 86400 * 10**9)
    await database.transitions.check("", quota, counted_plan(plan, 1))
    audit = await running(database, plan)
    await database.transitions.cancel(audit.id)
    assert await database.transitions.delete(audit.id)
    async with database.engine.connect() as connection:
        assert (await connection.execute(kept)).all() == []
