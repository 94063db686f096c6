"""Reads campaigns, their cells and their events. `campaign_transitions.py` writes them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from unerase.v1.campaigns_pb2 import (
    CELL_STATE_PENDING,
    CELL_STATE_RUNNING,
    Campaign,
    CampaignEvent,
    CampaignReportCell,
    CampaignSpec,
    CampaignState,
    Cell,
)
from unerase_backend.coordinator.filtering import EVERYTHING, Condition
from unerase_backend.coordinator.states import ACTIVE_CAMPAIGN, ENDED_CAMPAIGN
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.campaign_messages import (
    brief,
    campaign_of,
    cell_of,
    counted_cells,
    read_campaign,
    report_cell_of,
    whole_spec_of,
)
from unerase_backend.coordinator.storage.engine import IDS_AT_ONCE, Engine
from unerase_backend.coordinator.storage.filters import Columns, Labels, condition_of
from unerase_backend.coordinator.storage.tables import own

CELLS_AT_ONCE = 256
"""How many cells one that reads them all takes at once."""

_FILTERED: Columns = {
    "state": tables.campaigns.c.state,
    "create_time": tables.campaigns.c.create_time,
    "end_time": tables.campaigns.c.end_time,
    "labels": Labels(tables.campaign_labels, tables.campaign_labels.c.campaign, tables.campaigns.c.id),
}
_FILTERED_CELLS: Columns = {
    name: tables.cells.c[name] for name in ("state", "subject", "concept", "conclusion", "attempts")
}
_SHOWN = [column for column in tables.campaigns.c if column.name != "names"]


@dataclass(frozen=True)
class Run:
    """What the workflow of a campaign needs of it."""

    id: str
    tenant: str
    traceparent: str
    state: CampaignState.ValueType
    round: int
    """How often the campaign was begun again."""
    sealed: bool
    """The seed base is drawn, and not shown yet."""
    spec: CampaignSpec
    """With the seed base, without subjects and concepts."""


@dataclass(frozen=True)
class NextCell:
    """A cell that waits for its turn."""

    position: int
    subject: str
    concept: str
    attempts: int
    """How often it was tried before."""


class Campaigns:
    """The campaigns of all tenants."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def by_request(self, request_id: str, tenant: str = "") -> tuple[Campaign, str] | None:
        """Return the campaign that a tenant created with a request id, and the digest of the request."""
        which = tables.campaigns.c.request_id == own(tenant, request_id), ~tables.campaigns.c.deleted
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(tables.campaigns).where(*which))).first()
            return (await read_campaign(connection, row), row.request_digest) if row else None

    async def owned(self, campaign_id: str, tenant: str) -> Campaign | None:
        """Return a campaign in its present state, if it is the tenant's; without a seed base that is still hidden."""
        columns = tables.campaigns.c
        which = columns.id == campaign_id, columns.tenant == tenant, ~columns.deleted
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(tables.campaigns).where(*which))).first()
            return await read_campaign(connection, row) if row else None

    async def newest(
        self, limit: int, before: tuple[int, str] | None, tenant: str = "", condition: Condition = EVERYTHING
    ) -> list[Campaign]:
        """Return a tenant's newest campaigns for which a condition holds.

        They come without their names and without the findings of their gates. Only those before (create time in
        nanoseconds, id), if that is given.
        """
        columns = tables.campaigns.c
        which = condition_of(condition, _FILTERED, self._engine.dialect)
        query = sa.select(*_SHOWN).where(columns.tenant == tenant, ~columns.deleted, which)
        query = query.order_by(columns.create_time.desc(), columns.id.desc()).limit(limit)
        if before is not None:
            query = query.where(sa.tuple_(columns.create_time, columns.id) < sa.tuple_(*before))
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
            counted = await counted_cells(connection, [row.id for row in rows])
        return [brief(campaign_of(row, counted[row.id])) for row in rows]

    async def state(self, campaign_id: str) -> CampaignState.ValueType | None:
        """Return the state of a campaign; None once it is deleted."""
        query = sa.select(tables.campaigns.c.state).where(
            tables.campaigns.c.id == campaign_id, ~tables.campaigns.c.deleted
        )
        async with self._engine.connect() as connection:
            state: CampaignState.ValueType | None = (await connection.execute(query)).scalar()
        return state

    async def is_active(self, campaign_id: str) -> bool:
        """Return whether a campaign has not ended."""
        return await self.state(campaign_id) in ACTIVE_CAMPAIGN

    async def cells(self, campaign_id: str, after: int, limit: int, condition: Condition = EVERYTHING) -> list[Cell]:
        """Return the next cells behind a position for which a condition holds, in order."""
        columns = tables.cells.c
        which = condition_of(condition, _FILTERED_CELLS, self._engine.dialect)
        query = sa.select(tables.cells).where(columns.campaign == campaign_id, columns.position > after, which)
        async with self._engine.connect() as connection:
            rows = await connection.execute(query.order_by(columns.position).limit(limit))
            return [cell_of(row) for row in rows]

    async def events(self, campaign_id: str, after: int, limit: int) -> list[CampaignEvent]:
        """Return the next events after a sequence number."""
        columns = tables.campaign_events.c
        query = sa.select(columns.message).where(columns.campaign == campaign_id, columns.sequence > after)
        async with self._engine.connect() as connection:
            rows = await connection.execute(query.order_by(columns.sequence).limit(limit))
            return [CampaignEvent.FromString(row.message) for row in rows]

    async def sequences(self, campaign_ids: Sequence[str]) -> dict[str, int]:
        """Return the last sequence number of each of the campaigns that exists."""
        found: dict[str, int] = {}
        columns = tables.campaigns.c
        async with self._engine.connect() as connection:
            for start in range(0, len(campaign_ids), IDS_AT_ONCE):
                some = columns.id.in_(campaign_ids[start : start + IDS_AT_ONCE])
                query = sa.select(columns.id, columns.last_sequence).where(some, ~columns.deleted)
                found |= {row.id: row.last_sequence for row in await connection.execute(query)}
        return found

    async def active(self, among: Collection[str] | None = None) -> dict[str, int]:
        """Return the campaigns that have not ended, the oldest first, each with its round."""
        columns = tables.campaigns.c
        query = sa.select(columns.id, columns.round).where(columns.state.in_(ACTIVE_CAMPAIGN), ~columns.deleted)
        if among is not None:
            query = query.where(columns.id.in_(among))
        async with self._engine.connect() as connection:
            return {row.id: row.round for row in await connection.execute(query.order_by(columns.create_time))}

    async def count(self) -> dict[CampaignState.ValueType, int]:
        """Return the number of campaigns in each state."""
        query = sa.select(tables.campaigns.c.state, sa.func.count()).where(~tables.campaigns.c.deleted)
        async with self._engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(query.group_by(tables.campaigns.c.state))}

    async def ended_before(self, time_ns: int) -> list[str]:
        """Return the campaigns that ended before a time, in nanoseconds since 1970."""
        columns = tables.campaigns.c
        query = sa.select(columns.id).where(columns.state.in_(ENDED_CAMPAIGN), columns.end_time < time_ns)
        async with self._engine.connect() as connection:
            return [row.id for row in await connection.execute(query)]

    async def deleted(self) -> list[str]:
        """Return the campaigns whose audits are being removed."""
        async with self._engine.connect() as connection:
            query = sa.select(tables.campaigns.c.id).where(tables.campaigns.c.deleted)
            return [row.id for row in await connection.execute(query)]

    async def audits(self, campaign_id: str, limit: int) -> list[str]:
        """Return some of a campaign's audits."""
        query = sa.select(tables.audits.c.id).where(tables.audits.c.campaign == campaign_id).limit(limit)
        async with self._engine.connect() as connection:
            return [row.id for row in await connection.execute(query)]

    async def run(self, campaign_id: str) -> Run | None:
        """Return what the workflow of a campaign needs; None once it is deleted."""
        query = sa.select(*_SHOWN).where(tables.campaigns.c.id == campaign_id, ~tables.campaigns.c.deleted)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        spec = CampaignSpec.FromString(row.spec)
        return Run(row.id, row.tenant, row.traceparent, row.state, row.round, row.sealed, spec)

    async def whole_spec(self, campaign_id: str) -> CampaignSpec | None:
        """Return a campaign's specification with its seed base, its subjects and its concepts."""
        columns = tables.campaigns.c
        query = sa.select(columns.spec, columns.names).where(columns.id == campaign_id)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return whole_spec_of(row) if row else None

    async def rounds(self, campaign_id: str) -> int:
        """Return how often a campaign was begun."""
        query = sa.select(tables.campaigns.c.round).where(tables.campaigns.c.id == campaign_id)
        async with self._engine.connect() as connection:
            last = (await connection.execute(query)).scalar()
        return 0 if last is None else int(last) + 1

    async def running(self, campaign_id: str) -> dict[str, int]:
        """Return the audits of the cells that are running, each with the cell's position."""
        columns = tables.cells.c
        query = sa.select(columns.audit, columns.position).where(
            columns.campaign == campaign_id, columns.state == CELL_STATE_RUNNING
        )
        async with self._engine.connect() as connection:
            return {row.audit: row.position for row in await connection.execute(query)}

    async def next_cells(self, campaign_id: str, limit: int) -> list[NextCell]:
        """Return the next cells that wait for their turn."""
        columns = tables.cells.c
        query = sa.select(columns.position, columns.subject, columns.concept, columns.attempts).where(
            columns.campaign == campaign_id, columns.state == CELL_STATE_PENDING
        )
        async with self._engine.connect() as connection:
            return [NextCell(*row) for row in await connection.execute(query.order_by(columns.position).limit(limit))]

    async def any_ended(self, campaign_id: str) -> bool:
        """Return whether a cell is running whose audit has ended or was removed."""
        async with self._engine.connect() as connection:
            return (await connection.execute(ended_audits(campaign_id).limit(1))).first() is not None

    async def report_cells(self, campaign_id: str, after: int, limit: int) -> list[CampaignReportCell]:
        """Return the next cells behind a position as a report has them, with their whole verdicts.

        A cell whose audit was deleted has the verdict without its figures.
        """
        async with self._engine.connect() as connection:
            cells, audits = tables.cells.c, tables.audits.c
            query = (
                sa.select(
                    *tables.cells.c,
                    audits.verdict.label("figures"),
                    audits.comparability_digest,
                    audits.subject_digest,
                )
                .outerjoin(tables.audits, audits.id == cells.audit)
                .where(cells.campaign == campaign_id, cells.position > after)
                .order_by(cells.position)
                .limit(limit)
            )
            return [report_cell_of(row) for row in await connection.execute(query)]

    async def audit_ids(self, campaign_id: str) -> list[str]:
        """Return the ids of the cells' audits, in order of the cells."""
        columns = tables.cells.c
        query = sa.select(columns.audit).where(columns.campaign == campaign_id).order_by(columns.position)
        async with self._engine.connect() as connection:
            return [row.audit for row in await connection.execute(query)]

    async def reports(self, campaign_id: str) -> dict[str, str]:
        """Return the digests of a campaign's report, by the name of the form; "content" is that of its content."""
        content = sa.select(tables.campaigns.c.content_digest).where(tables.campaigns.c.id == campaign_id)
        columns = tables.campaign_reports.c
        forms = sa.select(columns.form, columns.digest).where(columns.campaign == campaign_id)
        async with self._engine.connect() as connection:
            digest = (await connection.execute(content)).scalar()
            found = {row.form: row.digest for row in await connection.execute(forms)}
        return found | ({"content": digest} if digest else {})


def ended_audits(campaign_id: str) -> sa.Select[Any]:
    """Return the query for the running cells of a campaign whose audits have ended or were removed, in order."""
    cells, audits = tables.cells.c, tables.audits.c
    return (
        sa.select(
            *cells,
            audits.state.label("audit_state"),
            audits.error_reason.label("audit_reason"),
            audits.error_message.label("audit_message"),
            audits.end_time.label("audit_end"),
            audits.verdict.label("figures"),
            audits.content_digest.label("audit_content"),
        )
        .outerjoin(tables.audits, audits.id == cells.audit)
        .where(
            cells.campaign == campaign_id,
            cells.state == CELL_STATE_RUNNING,
            sa.or_(audits.id.is_(None), audits.end_time > 0),
        )
        .order_by(cells.position)
    )
