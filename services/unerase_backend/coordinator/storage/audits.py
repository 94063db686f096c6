"""Reads audits: single ones, lists of them, and their events. `transitions.py` writes them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.audits_pb2 import Audit, AuditCost, AuditEvent, AuditSpec, AuditState
from unerase_backend.coordinator.filtering import EVERYTHING, Condition, Order
from unerase_backend.coordinator.states import ACTIVE, ENDED
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.engine import IDS_AT_ONCE, Engine
from unerase_backend.coordinator.storage.estimates import expected_end
from unerase_backend.coordinator.storage.filters import Columns, Labels, after, condition_of, ordered
from unerase_backend.coordinator.storage.tables import own

# A concept and the cases may take megabytes; no reader of an audit or of a list needs them.
_SHOWN = [column for column in tables.audits.c if column.name not in ("concept", "cases")]
_FILTERED: Columns = {
    "state": tables.audits.c.state,
    "subject": tables.audits.c.subject,
    "concept": tables.audits.c.concept_name,
    "conclusion": tables.audits.c.conclusion,
    "campaign": tables.audits.c.campaign,
    "create_time": tables.audits.c.create_time,
    "end_time": tables.audits.c.end_time,
    "labels": Labels(tables.audit_labels, tables.audit_labels.c.audit, tables.audits.c.id),
}
_ORDERED = {"create_time": tables.audits.c.create_time, "end_time": tables.audits.c.end_time}
AUDIT_ORDERS = tuple(_ORDERED)
NEWEST = Order("create_time", descending=True)
# The seed base of a campaign that has not shown it yet.
_HIDDEN = (
    sa.select(sa.true())
    .where(
        tables.audits.c.sealed,
        tables.campaigns.c.id == tables.audits.c.campaign,
        tables.campaigns.c.sealed,
    )
    .exists()
    .label("hidden")
)


@dataclass(frozen=True)
class Origin:
    """Where an audit came from."""

    tenant: str = ""
    traceparent: str = ""
    """That of the call that created the audit (W3C Trace Context); empty if the call was not traced."""
    create_time: int = 0
    """In nanoseconds since 1970."""
    campaign: str = ""
    """Id of the campaign that the audit belongs to; empty if to none."""
    sealed: bool = False
    """The seed base is one that the backend drew for the campaign."""


NOBODY = Origin()
"""The origin of an audit that was deleted, or that no call created."""


class Audits:
    """The audits of all tenants."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def by_request(self, request_id: str, tenant: str = "") -> tuple[Audit, str] | None:
        """Return the audit that a tenant created with a request id, and the digest of the request."""
        query = sa.select(*_SHOWN, _HIDDEN).where(tables.audits.c.request_id == own(tenant, request_id))
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return (_shown_of(row), row.request_digest) if row else None

    async def get(self, audit_id: str) -> Audit | None:
        """Return an audit in its present state; None if it does not exist."""
        async with self._engine.connect() as connection:
            return await read_audit(connection, audit_id)

    async def owned(self, audit_id: str, tenant: str) -> Audit | None:
        """Return an audit in its present state, if it is the tenant's; without a seed base that is still hidden."""
        mine = tables.audits.c.id == audit_id, tables.audits.c.tenant == tenant
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(*_SHOWN, _HIDDEN).where(*mine))).first()
        return _shown_of(row) if row else None

    async def hidden(self, audit_id: str) -> bool:
        """Return whether the audit's seed base, and what follows from it, is still hidden."""
        query = sa.select(_HIDDEN).where(tables.audits.c.id == audit_id)
        async with self._engine.connect() as connection:
            return bool((await connection.execute(query)).scalar())

    async def origin(self, audit_id: str) -> Origin:
        """Return the origin of an audit; `NOBODY` once it is deleted."""
        columns = [tables.audits.c[field.name] for field in fields(Origin)]
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(*columns).where(tables.audits.c.id == audit_id))).first()
        return Origin(*row) if row else NOBODY

    async def newest(self, limit: int, before: tuple[int, str] | None, tenant: str = "") -> list[Audit]:
        """Return a tenant's newest audits; only those before (create time in nanoseconds, id) if that is given."""
        return await self.listed(limit, before, tenant)

    async def listed(
        self,
        limit: int,
        behind: tuple[int, str] | None,
        tenant: str = "",
        condition: Condition = EVERYTHING,
        order: Order = NEWEST,
    ) -> list[Audit]:
        """Return the first of a tenant's audits for which a condition holds, by create time or end time.

        `behind` is the time, in nanoseconds, and the id of the audit before them. A seed base that is still hidden is
        left out.
        """
        table = tables.audits.c
        query = sa.select(*_SHOWN, _HIDDEN).where(
            table.tenant == tenant, condition_of(condition, _FILTERED, self._engine.dialect)
        )
        if behind is not None:
            query = query.where(after(order, _ORDERED, table.id, behind))
        query = query.order_by(*ordered(order, _ORDERED, table.id)).limit(limit)
        async with self._engine.connect() as connection:
            return [_shown_of(row) for row in await connection.execute(query)]

    async def active(self, among: Sequence[str] | None = None) -> list[str]:
        """Return the ids of the audits that have not ended, the oldest first; only those `among` some ids if given."""
        query = (
            sa.select(tables.audits.c.id).where(tables.audits.c.state.in_(ACTIVE)).order_by(tables.audits.c.create_time)
        )
        if among is not None:
            query = query.where(tables.audits.c.id.in_(among))
        async with self._engine.connect() as connection:
            return [row.id for row in await connection.execute(query)]

    async def oldest_active(self) -> int | None:
        """Return when the oldest audit in flight was created, in nanoseconds since 1970; None if all have ended."""
        query = sa.select(sa.func.min(tables.audits.c.create_time)).where(tables.audits.c.state.in_(ACTIVE))
        async with self._engine.connect() as connection:
            oldest: int | None = (await connection.execute(query)).scalar()
        return oldest

    async def count(self) -> dict[AuditState.ValueType, int]:
        """Return the number of audits in each state."""
        query = sa.select(tables.audits.c.state, sa.func.count()).group_by(tables.audits.c.state)
        async with self._engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    async def events(self, audit_id: str, after: int, limit: int) -> list[AuditEvent]:
        """Return the next events after a sequence number."""
        query = (
            sa.select(tables.events.c.message)
            .where(tables.events.c.audit == audit_id, tables.events.c.sequence > after)
            .order_by(tables.events.c.sequence)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [AuditEvent.FromString(row.message) for row in await connection.execute(query)]

    async def sequences(self, audit_ids: Sequence[str]) -> dict[str, int]:
        """Return the last sequence number of each of the audits that exists."""
        found: dict[str, int] = {}
        async with self._engine.connect() as connection:
            for start in range(0, len(audit_ids), IDS_AT_ONCE):
                some = tables.audits.c.id.in_(audit_ids[start : start + IDS_AT_ONCE])
                query = sa.select(tables.audits.c.id, tables.audits.c.last_sequence).where(some)
                found |= {row.id: row.last_sequence for row in await connection.execute(query)}
        return found

    async def ended_before(self, time_ns: int) -> list[str]:
        """Return the audits that ended before a time, in nanoseconds since 1970, and belong to no campaign."""
        query = sa.select(tables.audits.c.id).where(
            tables.audits.c.state.in_(ENDED),
            tables.audits.c.end_time < time_ns,
            tables.audits.c.campaign.not_in(sa.select(tables.campaigns.c.id)),
        )
        async with self._engine.connect() as connection:
            return [row.id for row in await connection.execute(query)]


async def read_audit(connection: AsyncConnection, audit_id: str) -> Audit | None:
    """Return an audit as the transaction sees it; None if it does not exist."""
    row = (await connection.execute(sa.select(*_SHOWN).where(tables.audits.c.id == audit_id))).first()
    return audit_of(row) if row else None


def _shown_of(row: Any) -> Audit:
    """Return the message of an audit's row as a caller may see it."""
    audit = audit_of(row)
    if row.hidden:
        audit.spec.ClearField("seed_base")
    return audit


def timestamp(nanoseconds: int) -> Timestamp:
    """Return nanoseconds since 1970 as a `Timestamp`."""
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def audit_of(row: Any) -> Audit:
    """Return the message of an audit's row."""
    audit = Audit(
        id=row.id,
        request_id=row.asked_as or row.request_id,
        spec=AuditSpec.FromString(row.spec),
        state=row.state,
        units_done=row.units_done,
        units_total=row.units_total,
        create_time=timestamp(row.create_time),
        error_reason=row.error_reason,
        error_message=row.error_message,
        campaign=row.campaign,
    )
    if row.cost is not None:
        audit.cost.CopyFrom(AuditCost.FromString(row.cost))
    if row.notes is not None:
        audit.MergeFromString(row.notes)
    if row.state in ACTIVE:
        duration = audit.cost.estimated_duration
        known = duration.ToNanoseconds() if audit.cost.HasField("estimated_duration") else None
        end = expected_end(time.time_ns(), row.create_time, known, row.work, row.work_done)
        if end is not None:
            audit.estimated_end_time.CopyFrom(timestamp(end))
    if row.end_time:
        audit.end_time.CopyFrom(timestamp(row.end_time))
    if row.verdict is not None:
        audit.verdict.ParseFromString(row.verdict)
    return audit
