import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from support.postgres import Postgres
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_CANCELLED,
    AUDIT_STATE_FAILED,
    AUDIT_STATE_PENDING,
    AUDIT_STATE_RUNNING,
    AUDIT_STATE_SUCCEEDED,
    Audit,
    AuditCost,
    AuditEvent,
    AuditSpec,
    UnitDone,
    UnitProgress,
)
from unerase.v1.types_pb2 import Concept, EvaluationDescription, Finding, Observation
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.catalogue import Catalogue, CustomConcept
from unerase_backend.coordinator import tables
from unerase_backend.coordinator.database import AuditEndedError, Database, Reports, timestamp
from unerase_backend.coordinator.discarded import discard
from unerase_backend.coordinator.plan import Plan, make_plan
from unerase_backend.coordinator.tables import create_engine
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import ExhaustedError


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


async def _insert(database: Database, plan: Plan, request_id: str = "", created: int = 5) -> Audit:
    audit = Audit(
        id=uuid.uuid4().hex,
        request_id=request_id or uuid.uuid4().hex,
        spec=plan.spec,
        state=AUDIT_STATE_PENDING,
        units_total=len(plan.units),
        create_time=timestamp(created),
    )
    assert await database.insert(audit, "digest", plan)
    return audit


async def _running(database: Database, plan: Plan, created: int = 5) -> Audit:
    audit = await _insert(database, plan, created=created)
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.start(session, audit.id)
    return audit


async def _record(database: Database, audit: Audit, unit: str, *observations: Observation) -> bool:
    async with AsyncSession(database.engine) as session, session.begin():
        return await database.record(session, audit.id, UnitDone(unit=unit), observations, [Finding(prompt=unit)])


async def test_an_audit_comes_back_as_it_was(database: Database, plan: Plan) -> None:
    audit = await _insert(database, plan)
    assert await database.get(audit.id) == audit
    assert await database.by_request(audit.request_id) == (audit, "digest")
    assert await database.unit_ids(audit.id) == [unit.id for unit in plan.units]
    assert await database.unit(audit.id, plan.units[3].id) == (plan.units[3], False)
    assert await database.get("nobody") is None


async def test_a_request_id_is_taken_once(database: Database, plan: Plan) -> None:
    async def insert() -> bool:
        audit = Audit(id=uuid.uuid4().hex, request_id="same", spec=plan.spec, create_time=timestamp(1))
        return await database.insert(audit, "digest", plan)

    assert sum(await asyncio.gather(*(insert() for _ in range(8)))) == 1
    assert len(await database.newest(10, None)) == 1


async def test_events_have_no_gaps_whoever_writes(database: Database, plan: Plan) -> None:
    audit = await _running(database, plan)

    async def progress(step: int) -> None:
        await database.progress(audit.id, AuditEvent(unit_progress=UnitProgress(step=step)))

    units = [unit.id for unit in plan.units[:6]]
    await asyncio.gather(*map(progress, range(20)), *(_record(database, audit, unit) for unit in units))
    events = await database.events(audit.id, 0, 1000)
    assert [event.sequence for event in events] == list(range(1, 29))
    assert [event.sequence for event in await database.events(audit.id, 25, 2)] == [26, 27]


async def test_a_unit_is_recorded_once(database: Database, plan: Plan) -> None:
    audit = await _running(database, plan)
    first, second = plan.units[0].id, plan.units[1].id
    # The later unit ends first; the evidence is in plan order all the same.
    assert await _record(database, audit, second, Observation(case_index=9, picture_digest="d"))
    assert await _record(database, audit, first, Observation(case_index=1), Observation(case_index=2))
    assert not await _record(database, audit, first, Observation(case_index=1), Observation(case_index=2))
    evidence = await database.evidence(audit.id)
    assert evidence is not None
    assert [observation.case_index for observation in evidence.observations] == [1, 2, 9]
    assert [finding.prompt for finding in evidence.findings] == [first, second]
    assert evidence.cases == list(plan.cases)
    assert (await database.unit(audit.id, first)) == (plan.units[0], True)
    stored = await database.get(audit.id)
    assert stored is not None
    assert stored.units_done == 2
    assert await database.may_read(audit.id, "d")
    assert not await database.may_read(audit.id, "e")


async def test_some_units_observations_are_read_alone(database: Database, plan: Plan) -> None:
    audit = await _running(database, plan)
    first, second, third = (unit.id for unit in plan.units[:3])
    for case, unit in enumerate((third, first, second)):
        assert await _record(database, audit, unit, Observation(case_index=case))
    read = await database.observations(audit.id, [second, first])
    assert [observation.case_index for observation in read] == [1, 2]
    assert await database.observations(audit.id, []) == []


async def test_a_unit_that_is_skipped_is_done_with_nothing(database: Database, plan: Plan) -> None:
    audit = await _running(database, plan)
    unit = plan.units[0].id
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.record(session, audit.id, UnitDone(unit=unit, skipped=True), [], [])
    assert not await _record(database, audit, unit, Observation())
    assert await database.unit(audit.id, unit) == (plan.units[0], True)
    assert (await database.events(audit.id, 2, 10))[0].unit_done == UnitDone(unit=unit, skipped=True)


async def test_nothing_is_written_to_an_audit_that_has_ended(database: Database, plan: Plan) -> None:
    audit = await _running(database, plan)
    assert await database.cancel(audit.id)
    assert not await database.cancel(audit.id)
    assert not await _record(database, audit, plan.units[0].id, Observation())
    with pytest.raises(AuditEndedError):
        await database.progress(audit.id, AuditEvent(unit_progress=UnitProgress()))
    async with AsyncSession(database.engine) as session, session.begin():
        assert not await database.fail(session, audit.id, "REASON", "message")
        assert not await database.succeed(session, audit.id, 7, Verdict(), Reports("a", "b", "c", "d"))
    events = await database.events(audit.id, 0, 10)
    states = [event.state_changed.state for event in events]
    assert states == [AUDIT_STATE_PENDING, AUDIT_STATE_RUNNING, AUDIT_STATE_CANCELLED]
    evidence = await database.evidence(audit.id)
    assert evidence is not None
    assert not evidence.observations


async def test_a_verdict_ends_an_audit(database: Database, plan: Plan) -> None:
    audit = await _running(database, plan)
    assert await database.reports(audit.id) is None
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.succeed(session, audit.id, 7, Verdict(statement="so"), Reports("a", "b", "c", "d"))
    ended = await database.get(audit.id)
    assert ended is not None
    assert (ended.state, ended.verdict.statement, ended.end_time.ToNanoseconds()) == (AUDIT_STATE_SUCCEEDED, "so", 7)
    assert await database.reports(audit.id) == Reports("a", "b", "c", "d")
    assert (await database.events(audit.id, 2, 10))[0].state_changed == ended
    assert await database.active() == []


async def test_a_table_of_an_earlier_version_gets_what_it_lacks(database: Database, plan: Plan) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE unerase_audits DROP COLUMN parquet_digest"))
    await database.migrate()
    audit = await _running(database, plan)
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.succeed(session, audit.id, 7, Verdict(), Reports("a", "b", "c", ""))
    assert await database.reports(audit.id) == Reports("a", "b", "c", "")
    await database.migrate()


async def test_tables_of_the_first_version_get_all_that_came_later(database: Database, plan: Plan) -> None:
    """Whatever may be left out of a row, and the tables that nothing else needs; what is in flight goes on."""
    audit = await _running(database, plan)
    async with database.engine.begin() as connection:
        for table in (tables.parts, tables.durations, tables.spent):
            await connection.run_sync(table.drop)
        for table in (tables.audits, tables.units, tables.artifacts):
            for column in table.columns:
                if column.name != "verdict" and (column.nullable or column.server_default is not None):
                    await connection.execute(sa.text(f"ALTER TABLE {table.name} DROP COLUMN {column.name}"))
    await database.migrate()
    found = await database.get(audit.id)
    assert found is not None
    assert (found.state, found.HasField("cost"), found.HasField("estimated_end_time")) == (
        AUDIT_STATE_RUNNING,
        False,
        False,
    )
    assert await _record(database, audit, plan.units[0].id, Observation(picture_digest="d"))
    await database.check("", Quota(audits=2, pictures_per_day=2, bytes=10**9), _counted(plan, 1))
    await _insert(database, plan)
    await database.cancel(audit.id)
    assert await database.delete(audit.id)


async def test_a_failure_says_why(database: Database, plan: Plan) -> None:
    audit = await _running(database, plan)
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.fail(session, audit.id, "REASON", "message")
    failed = await database.get(audit.id)
    assert failed is not None
    assert (failed.state, failed.error_reason, failed.error_message) == (AUDIT_STATE_FAILED, "REASON", "message")
    assert (await database.count()) == {AUDIT_STATE_FAILED: 1}


async def test_only_an_ended_audit_is_deleted_and_leaves_nothing(database: Database, plan: Plan) -> None:
    audit = await _running(database, plan)
    await _record(database, audit, plan.units[0].id, Observation(picture_digest="d"))
    assert not await database.delete(audit.id)
    await database.cancel(audit.id)
    assert await database.delete(audit.id)
    assert await database.get(audit.id) is None
    assert await database.events(audit.id, 0, 10) == []
    assert await database.evidence(audit.id) is None
    assert await database.unit(audit.id, plan.units[0].id) is None
    assert not await database.may_read(audit.id, "d")


async def test_an_artefact_goes_with_the_last_that_names_it(database: Database, plan: Plan) -> None:
    first, second = await _running(database, plan), await _running(database, plan)
    await _record(database, first, plan.units[0].id, Observation(picture_digest="alone"))
    await _record(database, first, plan.units[1].id, Observation(picture_digest="shared"))
    await _record(database, second, plan.units[0].id, Observation(picture_digest="shared"))
    concept = CustomConcept(Concept(name="mine", picture_digests=["shared", "mine"]), 32)
    assert await database.custom.insert(concept, "r", "d")
    removed: list[str] = []

    async def delete(audit: Audit) -> set[str]:
        await database.cancel(audit.id)
        assert await database.delete(audit.id)
        removed.clear()
        while await database.discarded.collect(removed.append):
            pass
        return set(removed)

    assert await delete(first) == {"alone"}
    assert await delete(second) == set(plan.concept.picture_digests)
    assert await database.custom.delete("mine")
    removed.clear()
    assert await database.discarded.collect(removed.append) == 2
    assert removed == ["mine", "shared"]


async def test_an_artefact_that_cannot_be_removed_is_tried_again(database: Database, plan: Plan) -> None:
    await database.discarded.add(["one"])

    def fail(digest: str) -> None:
        raise PermissionError(digest)

    with pytest.raises(PermissionError):
        await database.discarded.collect(fail)
    removed: list[str] = []
    assert await database.discarded.collect(removed.append) == 1
    assert removed == ["one"]


async def test_a_quota_counts_a_tenants_own_audits_that_have_not_ended(database: Database, plan: Plan) -> None:
    quota = Quota(audits=3)

    async def insert(tenant: str) -> Audit:
        audit = Audit(id=uuid.uuid4().hex, request_id=uuid.uuid4().hex, create_time=timestamp(time.time_ns()))
        assert await database.insert(audit, "digest", plan, tenant, quota)
        return audit

    # Those that come at once are counted one after another.
    answers = await asyncio.gather(*(insert("acme") for _ in range(8)), return_exceptions=True)
    audits = [answer for answer in answers if isinstance(answer, Audit)]
    refused = [answer for answer in answers if isinstance(answer, ExhaustedError)]
    assert (len(audits), len(refused)) == (3, 5)
    assert {(error.reason, error.metadata["limit"]) for error in refused} == {("QUOTA_AUDITS", "3")}
    assert all(error.retry_after_seconds for error in refused)
    await insert("rival")
    await database.cancel(audits[0].id)
    await insert("acme")


async def test_an_audit_that_is_asked_for_again_is_not_refused_for_its_own_quota(
    database: Database, plan: Plan
) -> None:
    """As where the answer of a commit was lost, or a client asks again while its first call is under way."""
    quota = Quota(audits=1)
    audit = Audit(id="a", request_id="r", create_time=timestamp(1))
    assert await database.insert(audit, "digest", plan, "acme", quota)
    again = Audit(id="b", request_id="r", create_time=timestamp(2))
    assert not await database.insert(again, "digest", plan, "acme", quota)


async def test_a_list_of_concepts_names_reads_none_of_their_messages(database: Database) -> None:
    """A thousand of them may be hundreds of megabytes; those of an earlier version have their name nowhere else."""
    for name in ("new", "old"):
        assert await database.custom.insert(CustomConcept(Concept(name=name), 0), name, "d", "acme")
    async with database.engine.begin() as connection:
        for name, values in (("new", {"message": b"\xff"}), ("old", {"called": None})):
            which = tables.concepts.c.request_id == tables.own("acme", name)
            await connection.execute(sa.update(tables.concepts).where(which).values(**values))
    assert sorted(await database.custom.names("acme")) == ["new", "old"]
    assert (await database.custom.count("acme"), await database.custom.count("rival")) == (2, 0)


async def test_the_pictures_of_many_concepts_stay(database: Database) -> None:
    digests = [f"{number}" for number in range(40)]
    for digest in digests:
        concept = CustomConcept(Concept(name=f"c{digest}", picture_digests=[digest]), 32)
        assert await database.custom.insert(concept, digest, "d")
    await database.discarded.add([*digests, "alone"])
    removed: list[str] = []
    assert await database.discarded.collect(removed.append) == 41
    assert removed == ["alone"]


async def test_an_audit_fails_whatever_is_said_of_it(database: Database, plan: Plan) -> None:
    audit = await _running(database, plan)
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.fail(session, audit.id, "A_REASON" * 20, "a zero \0 and half a pair \udcff")
    failed = await database.get(audit.id)
    assert failed is not None
    assert failed.state == AUDIT_STATE_FAILED
    assert failed.error_reason == ("A_REASON" * 20)[:64]
    assert failed.error_message == "a zero \\0 and half a pair \\udcff"


async def test_more_artefacts_are_noted_than_a_statement_has_parameters(database: Database) -> None:
    """PostgreSQL takes 65,535, and an audit that cannot be deleted would stay for ever."""
    digests = {f"{number:064x}" for number in range(66_000)}
    async with database.engine.begin() as connection:
        await discard(connection, digests)
        await discard(connection, digests)
        noted = sa.select(sa.func.count()).select_from(tables.discarded)
        assert (await connection.execute(noted)).scalar() == len(digests)


def _counted(plan: Plan, pictures: int) -> Plan:
    """The plan as one that is counted to make so many pictures, of 1,536 bytes each."""
    return replace(plan, cost=AuditCost(pictures=pictures))


@pytest.mark.parametrize(
    ("quota", "reason"), [({"pictures_per_day": 10}, "QUOTA_PICTURES"), ({"bytes": 10 * 1536}, "QUOTA_BYTES")]
)
async def test_a_quota_counts_what_is_in_flight_before_it_is_made(
    database: Database, plan: Plan, quota: dict[str, int], reason: str
) -> None:
    async def insert(pictures: int = 4, tenant: str = "acme") -> Audit:
        audit = Audit(id=uuid.uuid4().hex, request_id=uuid.uuid4().hex, create_time=timestamp(time.time_ns()))
        counted = _counted(plan, pictures)
        assert await database.insert(audit, "digest", counted, tenant, Quota(**quota))
        return audit

    first, _ = await insert(), await insert()
    # Nothing is made, and yet a third would be too much; one that fits is let in.
    with pytest.raises(ExhaustedError, match="2 are left") as caught:
        await database.check("acme", Quota(**quota), _counted(plan, 4))
    assert "used up" not in caught.value.message
    with pytest.raises(ExhaustedError) as caught:
        await insert()
    assert (caught.value.reason, caught.value.retry_after_seconds) == (reason, 30.0)
    await database.check("acme", Quota(**quota), _counted(plan, 2))
    await insert(tenant="rival")
    # What an audit did not make is free once it has ended.
    await database.cancel(first.id)
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
        assert await database.insert(audit, "digest", _counted(plan, 4), "acme", Quota(**quota))
        return audit

    audit = await insert(time.time_ns())
    # "grey" is looked at twice and made once.
    observations = [Observation(picture_digest=digest) for digest in ("a", "b", "grey", "grey", "")]
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.start(session, audit.id)
        done = UnitDone(unit=plan.units[0].id)
        assert await database.record(session, audit.id, done, observations, [], dict.fromkeys(("a", "b", "grey"), 1536))
    await database.cancel(audit.id)
    with pytest.raises(ExhaustedError) as caught:
        await insert(time.time_ns())
    assert (caught.value.reason, caught.value.metadata["used"]) == (reason, str(3 * (1536 if "bytes" in quota else 1)))
    assert await database.delete(audit.id)
    if "bytes" in quota:
        await insert(time.time_ns())
        return
    # What was made today was made, whatever is deleted.
    with pytest.raises(ExhaustedError) as caught:
        await insert(time.time_ns())
    assert (caught.value.reason, caught.value.metadata["used"]) == (reason, "3")
    assert 86000 < (caught.value.retry_after_seconds or 0) <= 86400
    await database.check("rival", Quota(**quota), _counted(plan, 4))


async def test_what_deleted_audits_made_is_forgotten_after_a_day(
    database: Database, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota, now = Quota(pictures_per_day=1), time.time_ns()
    for created in (now, now - 2 * 86400 * 10**9):
        audit = await _running(database, plan, created)
        await _record(database, audit, plan.units[0].id, Observation(picture_digest="d"))
        await database.cancel(audit.id)
        assert await database.delete(audit.id)
    async with database.engine.connect() as connection:
        kept = sa.select(tables.spent.c.create_time, tables.spent.c.pictures)
        assert (await connection.execute(kept)).all() == [(now, 1)]
    with pytest.raises(ExhaustedError):
        await database.check("", quota, _counted(plan, 1))
    monkeypatch.setattr(time, "time_ns", lambda: now + 2 * 86400 * 10**9)
    await database.check("", quota, _counted(plan, 1))
    audit = await _running(database, plan)
    await database.cancel(audit.id)
    assert await database.delete(audit.id)
    async with database.engine.connect() as connection:
        assert (await connection.execute(kept)).all() == []


async def test_the_newest_come_first_page_by_page(database: Database, plan: Plan) -> None:
    # Two of the same time: the id decides.
    audits = [await _insert(database, plan, created=created) for created in (1, 2, 2, 3)]
    expected = sorted(audits, key=lambda audit: (audit.create_time.ToNanoseconds(), audit.id), reverse=True)
    seen: list[Audit] = []
    while page := await database.newest(1, (seen[-1].create_time.ToNanoseconds(), seen[-1].id) if seen else None):
        seen += page
    assert seen == expected
