"""The states of campaigns and cells in a database of either kind: each cell begins and ends once, whatever comes."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from unerase.v1.audits_pb2 import AUDIT_STATE_PENDING, Audit
from unerase.v1.campaigns_pb2 import (
    CAMPAIGN_STATE_CANCELLED,
    CAMPAIGN_STATE_PENDING,
    CAMPAIGN_STATE_RUNNING,
    CAMPAIGN_STATE_SUCCEEDED,
    CELL_STATE_CANCELLED,
    CELL_STATE_FAILED,
    CELL_STATE_PENDING,
    CELL_STATE_RUNNING,
    Campaign,
    CampaignDelayed,
    CampaignSpec,
)
from unerase.v1.gates_pb2 import GateResult
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.coordinator.storage import campaign_rows
from unerase_backend.coordinator.storage.audits import Origin, timestamp
from unerase_backend.coordinator.storage.campaign_transitions import CampaignEndedError
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.runtime.errors import ExhaustedError


async def insert(database: Database, subjects: int = 3, tenant: str = "", *, sealed: bool = False) -> str:
    campaign = Campaign(
        id=uuid.uuid4().hex,
        request_id=uuid.uuid4().hex,
        spec=CampaignSpec(subjects=[f"s{number}" for number in range(subjects)], concepts=["c", "d"]),
        cells_total=2 * subjects,
        create_time=timestamp(time.time_ns()),
    )
    campaign.spec.template.seed_base = 5
    origin = Origin(tenant, sealed=sealed)
    assert await database.campaign_transitions.insert(campaign, "digest", origin)
    assert not await database.campaign_transitions.insert(campaign, "digest", origin)
    return campaign.id


async def begin(database: Database, plan: Plan, campaign: str, position: int, *, sealed: bool = False) -> str:
    audit = Audit(
        id=uuid.uuid4().hex,
        request_id=uuid.uuid4().hex,
        spec=plan.spec,
        state=AUDIT_STATE_PENDING,
        create_time=timestamp(time.time_ns()),
        campaign=campaign,
    )

    async def within(connection: AsyncConnection) -> None:
        await database.campaign_transitions.begin_cell(connection, campaign, position, audit.id)

    insert_audit = partial(database.transitions.insert, audit, "digest", plan, within=within)
    assert await insert_audit(origin=Origin(campaign=campaign, sealed=sealed))
    return audit.id


async def fail(database: Database, audit: str) -> None:
    async with AsyncSession(database.engine) as session, session.begin():
        await database.transitions.fail(session, audit, "REASON", "message")


async def check(database: Database, campaign_id: str) -> None:
    """Events have no gaps, and tell the last state of every cell that they are about."""
    events = await database.campaigns.events(campaign_id, 0, 10_000)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    told = {event.cell_changed.index: event.cell_changed for event in events if event.HasField("cell_changed")}
    cells = {cell.index: cell for cell in await database.campaigns.cells(campaign_id, -1, 100)}
    for index, cell in told.items():
        if cells[index].state not in (CELL_STATE_PENDING, CELL_STATE_CANCELLED):
            assert cell == cells[index]
    owned = await database.campaigns.owned(campaign_id, "")
    assert owned is not None
    counts = owned.cells
    assert counts.pending + counts.running + counts.succeeded + counts.failed + counts.cancelled == len(cells)


async def test_cells_come_subject_by_subject(database: Database) -> None:
    campaign_id = await insert(database)
    cells = await database.campaigns.cells(campaign_id, -1, 100)
    assert [(cell.subject, cell.concept) for cell in cells] == [(f"s{n}", c) for n in range(3) for c in "cd"]
    campaign = await database.campaigns.owned(campaign_id, "")
    assert campaign is not None
    assert (campaign.state, campaign.cells.pending) == (CAMPAIGN_STATE_PENDING, 6)
    assert list(campaign.spec.subjects) == ["s0", "s1", "s2"]


async def test_a_cell_begins_once_however_many_try(database: Database, plan: Plan) -> None:
    campaign_id = await insert(database)
    assert await database.campaign_transitions.start(campaign_id)
    tried = await asyncio.gather(*(begin(database, plan, campaign_id, 0) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(each, str) for each in tried) == 1
    assert sum(isinstance(each, CampaignEndedError) for each in tried) == 5
    # What did not begin left no audit.
    assert len(await database.campaigns.audits(campaign_id, 100)) == 1
    (audit,) = (await database.campaigns.running(campaign_id)).keys()
    await fail(database, audit)
    settled = await asyncio.gather(*(database.campaign_transitions.settle(campaign_id) for _ in range(4)))
    assert [cell.state for cells in settled for cell in cells] == [CELL_STATE_FAILED]
    await check(database, campaign_id)


async def test_a_cell_whose_audit_was_removed_has_failed(database: Database, plan: Plan) -> None:
    campaign_id = await insert(database)
    audit = await begin(database, plan, campaign_id, 2)
    await database.transitions.cancel(audit)
    await database.transitions.delete(audit)
    (cell,) = await database.campaign_transitions.settle(campaign_id)
    assert (cell.index, cell.error_reason) == (2, "AUDIT_DELETED")


async def test_a_campaign_ends_once_all_cells_have(database: Database) -> None:
    campaign_id = await insert(database, 1, sealed=True)
    transitions = database.campaign_transitions
    assert await transitions.start(campaign_id)
    assert not await transitions.start(campaign_id)
    assert await transitions.fail_cell(campaign_id, 0, "R" * 100, "a zero \0 and half a pair \udcff")
    assert not await transitions.fail_cell(campaign_id, 0, "R", "again")
    assert await transitions.delay(campaign_id, CampaignDelayed(reason="QUOTA_AUDITS", message="wait"))
    assert not await transitions.delay(campaign_id, CampaignDelayed(reason="QUOTA_AUDITS", message="still"))
    assert not await transitions.finish(campaign_id, None, "0" * 64, {})
    waits = await database.campaigns.owned(campaign_id, "")
    assert waits is not None
    assert (waits.delayed.reason, waits.spec.template.HasField("seed_base")) == ("QUOTA_AUDITS", False)
    assert await transitions.fail_cell(campaign_id, 1, "R", "other")
    assert await transitions.finish(campaign_id, GateResult(failed=2), "0" * 64, {"compared-1": "1" * 64})
    assert not await transitions.finish(campaign_id, None, "0" * 64, {})
    ended = await database.campaigns.owned(campaign_id, "")
    assert ended is not None
    assert (ended.state, ended.gate_result.failed, ended.HasField("delayed")) == (CAMPAIGN_STATE_SUCCEEDED, 2, False)
    assert ended.spec.template.seed_base == 5
    assert await database.campaigns.reports(campaign_id) == {"content": "0" * 64, "compared-1": "1" * 64}
    assert await transitions.retry(campaign_id) == 1
    again = await database.campaigns.owned(campaign_id, "")
    assert again is not None
    assert (again.state, again.cells.pending, again.HasField("gate_result")) == (CAMPAIGN_STATE_RUNNING, 2, False)
    # What was shown stays shown.
    assert again.spec.template.seed_base == 5
    assert await database.campaigns.reports(campaign_id) == {}
    assert await transitions.cancel(campaign_id) == []
    assert await transitions.cancel(campaign_id) is None
    assert await transitions.hide(campaign_id)
    assert not await transitions.hide(campaign_id)
    assert await database.campaigns.owned(campaign_id, "") is None
    assert await database.campaigns.deleted() == [campaign_id]
    await transitions.delete(campaign_id)
    assert await database.campaigns.deleted() == []


async def test_the_audits_of_a_campaign_outlive_the_retention_of_audits(database: Database, plan: Plan) -> None:
    campaign_id = await insert(database)
    audit = await begin(database, plan, campaign_id, 0)
    await database.campaign_transitions.cancel(campaign_id)
    assert audit not in await database.audits.ended_before(time.time_ns())
    assert await database.campaigns.ended_before(time.time_ns()) == [campaign_id]


async def test_a_tenant_has_some_campaigns_in_flight(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_rows, "MAX_ACTIVE", 3)
    for _ in range(3):
        last = await insert(database, 1, "acme")
    with pytest.raises(ExhaustedError) as full:
        await insert(database, 1, "acme")
    assert full.value.reason == "CAMPAIGNS_FULL"
    await insert(database, 1, "other")
    await database.campaign_transitions.cancel(last)
    await insert(database, 1, "acme")


@pytest.fixture(scope="module")
async def sqlite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    path: Path = tmp_path_factory.mktemp("campaigns") / "audits.sqlite"
    database = Database(create_engine(f"sqlite+aiosqlite:///{path}"))
    await database.migrate()
    yield database
    await database.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 3)),
        st.tuples(st.just("fail"), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["settle", "cancel", "retry", "finish"]), st.just(0)),
    ),
    max_size=20,
)


@given(STEPS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_each_attempt_of_a_cell_begins_and_ends_once(
    sqlite: Database, plan: Plan, steps: list[tuple[str, int]]
) -> None:
    """Whatever audits end, cells fail, and campaigns are cancelled and tried again in which order."""
    database, transitions = sqlite, sqlite.campaign_transitions
    campaign_id = await insert(database, 2)
    await transitions.start(campaign_id)
    for step, cell in steps:
        match step:
            case "begin":
                with suppress(CampaignEndedError):
                    await begin(database, plan, campaign_id, cell)
            case "fail":
                await transitions.fail_cell(campaign_id, cell, "REASON", "message")
            case "end":
                for audit, position in (await database.campaigns.running(campaign_id)).items():
                    if position == cell:
                        await fail(database, audit)
            case "settle":
                await transitions.settle(campaign_id)
            case "cancel":
                await transitions.cancel(campaign_id)
            case "retry":
                await transitions.retry(campaign_id)
            case "finish":
                await transitions.finish(campaign_id, None, "", {})
        await check(database, campaign_id)
    events = await database.campaigns.events(campaign_id, 0, 10_000)
    changes = [event.cell_changed for event in events if event.HasField("cell_changed")]
    for index in range(4):
        of_cell = [(cell.attempts, cell.state == CELL_STATE_RUNNING) for cell in changes if cell.index == index]
        # An attempt has one beginning at most, and one end at most, which comes last.
        assert len(set(of_cell)) == len(of_cell)
        assert of_cell == sorted(of_cell, key=lambda each: (each[0], not each[1]))
    audits = await database.campaigns.audits(campaign_id, 1000)
    assert len(audits) == sum(cell.state == CELL_STATE_RUNNING for cell in changes)
    owned = await database.campaigns.owned(campaign_id, "")
    assert owned is not None
    if owned.state == CAMPAIGN_STATE_CANCELLED:
        assert owned.cells.pending == owned.cells.running == 0
    await transitions.cancel(campaign_id)
    assert set(audits).isdisjoint(await database.audits.active())
