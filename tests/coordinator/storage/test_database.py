"""The database, on SQLite and PostgreSQL: audits, their states, events and evidence."""

import asyncio
import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from unerase.v1.audits_pb2 import (
    AUDIT_STATE_CANCELLED,
    AUDIT_STATE_FAILED,
    AUDIT_STATE_PENDING,
    AUDIT_STATE_RUNNING,
    AUDIT_STATE_SUCCEEDED,
    Audit,
    AuditEvent,
    UnitDone,
    UnitProgress,
)
from unerase.v1.types_pb2 import Concept, Observation
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.catalogue import CustomConcept
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.evidence import Reports
from unerase_backend.coordinator.storage.transitions import AuditEndedError
from unerase_backend.runtime.access import Quota

from .conftest import counted_plan, insert, record, running


async def test_an_audit_comes_back_as_it_was(database: Database, plan: Plan) -> None:
    audit = await insert(database, plan)
    assert await database.audits.get(audit.id) == audit
    assert await database.audits.by_request(audit.request_id) == (audit, "digest")
    assert await database.evidence.unit_ids(audit.id) == [unit.id for unit in plan.units]
    assert await database.evidence.unit(audit.id, plan.units[3].id) == (plan.units[3], False)
    assert await database.audits.get("nobody") is None


async def test_a_request_id_is_taken_once(database: Database, plan: Plan) -> None:
    async def insert() -> bool:
        audit = Audit(id=uuid.uuid4().hex, request_id="same", spec=plan.spec, create_time=timestamp(1))
        return await database.transitions.insert(audit, "digest", plan)

    assert sum(await asyncio.gather(*(insert() for _ in range(8)))) == 1
    assert len(await database.audits.newest(10, None)) == 1


async def test_events_have_no_gaps_whoever_writes(database: Database, plan: Plan) -> None:
    audit = await running(database, plan)

    async def progress(step: int) -> None:
        await database.transitions.progress(audit.id, AuditEvent(unit_progress=UnitProgress(step=step)))

    units = [unit.id for unit in plan.units[:6]]
    await asyncio.gather(*map(progress, range(20)), *(record(database, audit, unit) for unit in units))
    events = await database.audits.events(audit.id, 0, 1000)
    assert [event.sequence for event in events] == list(range(1, 29))
    assert [event.sequence for event in await database.audits.events(audit.id, 25, 2)] == [26, 27]


async def test_a_unit_is_recorded_once(database: Database, plan: Plan) -> None:
    audit = await running(database, plan)
    first, second = plan.units[0].id, plan.units[1].id
    # The later unit ends first; the evidence is in plan order all the same.
    assert await record(database, audit, second, Observation(case_index=9, picture_digest="d"))
    assert await record(database, audit, first, Observation(case_index=1), Observation(case_index=2))
    assert not await record(database, audit, first, Observation(case_index=1), Observation(case_index=2))
    evidence = await database.evidence.everything(audit.id)
    assert evidence is not None
    assert [observation.case_index for observation in evidence.observations] == [1, 2, 9]
    assert [finding.prompt for finding in evidence.findings] == [first, second]
    assert evidence.cases == list(plan.cases)
    assert (await database.evidence.unit(audit.id, first)) == (plan.units[0], True)
    stored = await database.audits.get(audit.id)
    assert stored is not None
    assert stored.units_done == 2
    assert await database.evidence.may_read(audit.id, "d")
    assert not await database.evidence.may_read(audit.id, "e")


async def test_some_units_observations_are_read_alone(database: Database, plan: Plan) -> None:
    audit = await running(database, plan)
    first, second, third = (unit.id for unit in plan.units[:3])
    for case, unit in enumerate((third, first, second)):
        assert await record(database, audit, unit, Observation(case_index=case))
    read = await database.evidence.observations(audit.id, [second, first])
    assert [observation.case_index for observation in read] == [1, 2]
    assert await database.evidence.observations(audit.id, []) == []


async def test_a_unit_that_is_skipped_is_done_with_nothing(database: Database, plan: Plan) -> None:
    audit = await running(database, plan)
    unit = plan.units[0].id
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.transitions.record(session, audit.id, UnitDone(unit=unit, skipped=True), [], [])
    assert not await record(database, audit, unit, Observation())
    assert await database.evidence.unit(audit.id, unit) == (plan.units[0], True)
    assert (await database.audits.events(audit.id, 2, 10))[0].unit_done == UnitDone(unit=unit, skipped=True)


async def test_nothing_is_written_to_an_audit_that_has_ended(database: Database, plan: Plan) -> None:
    audit = await running(database, plan)
    assert await database.transitions.cancel(audit.id)
    assert not await database.transitions.cancel(audit.id)
    assert not await record(database, audit, plan.units[0].id, Observation())
    with pytest.raises(AuditEndedError):
        await database.transitions.progress(audit.id, AuditEvent(unit_progress=UnitProgress()))
    async with AsyncSession(database.engine) as session, session.begin():
        assert not await database.transitions.fail(session, audit.id, "REASON", "message")
        assert not await database.transitions.succeed(session, audit.id, 7, Verdict(), Reports("a", "b", "c", "d"))
    events = await database.audits.events(audit.id, 0, 10)
    states = [event.state_changed.state for event in events]
    assert states == [AUDIT_STATE_PENDING, AUDIT_STATE_RUNNING, AUDIT_STATE_CANCELLED]
    evidence = await database.evidence.everything(audit.id)
    assert evidence is not None
    assert not evidence.observations


async def test_a_verdict_ends_an_audit(database: Database, plan: Plan) -> None:
    audit = await running(database, plan)
    assert await database.evidence.reports(audit.id) is None
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.transitions.succeed(
            session, audit.id, 7, Verdict(statement="so"), Reports("a", "b", "c", "d")
        )
    ended = await database.audits.get(audit.id)
    assert ended is not None
    assert (ended.state, ended.verdict.statement, ended.end_time.ToNanoseconds()) == (AUDIT_STATE_SUCCEEDED, "so", 7)
    assert await database.evidence.reports(audit.id) == Reports("a", "b", "c", "d")
    assert (await database.audits.events(audit.id, 2, 10))[0].state_changed == ended
    assert await database.audits.active() == []


async def test_a_table_of_an_earlier_version_gets_what_it_lacks(database: Database, plan: Plan) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE unerase_audits DROP COLUMN parquet_digest"))
    await database.migrate()
    audit = await running(database, plan)
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.transitions.succeed(session, audit.id, 7, Verdict(), Reports("a", "b", "c", ""))
    assert await database.evidence.reports(audit.id) == Reports("a", "b", "c", "")
    await database.migrate()


async def test_tables_of_the_first_version_get_all_that_came_later(database: Database, plan: Plan) -> None:
    """Whatever may be left out of a row, and the tables that nothing else needs; what is in flight goes on."""
    audit = await running(database, plan)
    async with database.engine.begin() as connection:
        for table in (tables.parts, tables.durations, tables.spent, tables.audit_labels):
            await connection.run_sync(table.drop)
        # SQLite drops no column that an index has.
        for index in tables.audits.indexes:
            await connection.run_sync(index.drop)
        for table in (tables.audits, tables.units, tables.artifacts):
            for column in table.columns:
                if column.name != "verdict" and (column.nullable or column.server_default is not None):
                    await connection.execute(sa.text(f"ALTER TABLE {table.name} DROP COLUMN {column.name}"))
    await database.migrate()
    found = await database.audits.get(audit.id)
    assert found is not None
    assert (found.state, found.HasField("cost"), found.HasField("estimated_end_time")) == (
        AUDIT_STATE_RUNNING,
        False,
        False,
    )
    assert await record(database, audit, plan.units[0].id, Observation(picture_digest="d"))
    await database.transitions.check("", Quota(audits=2, pictures_per_day=2, bytes=10**9), counted_plan(plan, 1))
    await insert(database, plan)
    await database.transitions.cancel(audit.id)
    assert await database.transitions.delete(audit.id)


async def test_a_failure_says_why(database: Database, plan: Plan) -> None:
    audit = await running(database, plan)
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.transitions.fail(session, audit.id, "REASON", "message")
    failed = await database.audits.get(audit.id)
    assert failed is not None
    assert (failed.state, failed.error_reason, failed.error_message) == (AUDIT_STATE_FAILED, "REASON", "message")
    assert (await database.audits.count()) == {AUDIT_STATE_FAILED: 1}


async def test_only_an_ended_audit_is_deleted_and_leaves_nothing(database: Database, plan: Plan) -> None:
    audit = await running(database, plan)
    await record(database, audit, plan.units[0].id, Observation(picture_digest="d"))
    assert not await database.transitions.delete(audit.id)
    await database.transitions.cancel(audit.id)
    assert await database.transitions.delete(audit.id)
    assert await database.audits.get(audit.id) is None
    assert await database.audits.events(audit.id, 0, 10) == []
    assert await database.evidence.everything(audit.id) is None
    assert await database.evidence.unit(audit.id, plan.units[0].id) is None
    assert not await database.evidence.may_read(audit.id, "d")


async def test_a_list_of_concepts_names_reads_none_of_their_messages(database: Database) -> None:
    """A thousand of them may be hundreds of megabytes; those of an earlier version have their name nowhere else."""
    for name in ("new", "old"):
        assert await database.concepts.insert(CustomConcept(Concept(name=name), 0), name, "d", "acme")
    async with database.engine.begin() as connection:
        for name, values in (("new", {"message": b"\xff"}), ("old", {"called": None})):
            which = tables.concepts.c.request_id == tables.own("acme", name)
            await connection.execute(sa.update(tables.concepts).where(which).values(**values))
    assert sorted(await database.concepts.names("acme")) == ["new", "old"]
    assert (await database.concepts.count("acme"), await database.concepts.count("rival")) == (2, 0)


async def test_an_audit_fails_whatever_is_said_of_it(database: Database, plan: Plan) -> None:
    audit = await running(database, plan)
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.transitions.fail(session, audit.id, "A_REASON" * 20, "a zero \0 and half a pair \udcff")
    failed = await database.audits.get(audit.id)
    assert failed is not None
    assert failed.state == AUDIT_STATE_FAILED
    assert failed.error_reason == ("A_REASON" * 20)[:64]
    assert failed.error_message == "a zero \\0 and half a pair \\udcff"


async def test_the_newest_come_first_page_by_page(database: Database, plan: Plan) -> None:
    # Two of the same time: the id decides.
    audits = [await insert(database, plan, created=created) for created in (1, 2, 2, 3)]
    expected = sorted(audits, key=lambda audit: (audit.create_time.ToNanoseconds(), audit.id), reverse=True)
    seen: list[Audit] = []
    while page := await database.audits.newest(
        1, (seen[-1].create_time.ToNanoseconds(), seen[-1].id) if seen else None
    ):
        seen += page
    assert seen == expected
