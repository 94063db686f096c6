"""What the coordinator remembers of audits: their units, events, observations and findings.

An audit's row is the truth about its state. Whatever is written to an audit in flight first takes the next sequence
number from that row, and does so only while the audit runs: a unit that ends after the audit was cancelled finds no
row and writes nothing. Sequence numbers have no gaps, since a transaction that fails gives its number back.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from unerase.internal.v1alpha1.units_pb2 import Unit
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
    AuditState,
    UnitDone,
)
from unerase.v1.types_pb2 import Case, Concept, Finding, Observation
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.coordinator import tables
from unerase_backend.coordinator.cost import picture_bytes
from unerase_backend.coordinator.custom_concepts import CustomConcepts
from unerase_backend.coordinator.discarded import Discarded, discard
from unerase_backend.coordinator.estimates import expected_end, work_to_do
from unerase_backend.coordinator.kept_parts import KeptParts
from unerase_backend.coordinator.plan import Plan
from unerase_backend.coordinator.quotas import SPENT, Demand, check_quota, keep_spent, usage_of
from unerase_backend.coordinator.retry import repeated
from unerase_backend.coordinator.tables import ACTIVE, ENDED, Engine, alone, deterministic, insert_all, own
from unerase_backend.runtime.access import Quota

# SQLite takes some thousand parameters at once.
_IDS_AT_ONCE = 1000
_UNLIMITED = Quota()
# As long as its column.
_REASON = 64
# A concept and the cases may be megabytes; who looks at an audit, or at a page of them, needs neither.
_SHOWN = [column for column in tables.audits.c if column.name not in ("concept", "cases")]


class AuditEndedError(Exception):
    """The audit has ended meanwhile, or was deleted: there is nothing to write to."""


@dataclass(frozen=True)
class Evidence:
    """Everything that a verdict and a report are made of, units in plan order."""

    audit: Audit
    concept: Concept
    cases: list[Case]
    observations: list[Observation]
    findings: list[Finding]


@dataclass(frozen=True)
class Reports:
    """The digests of what an audit leaves in the artefact store."""

    content: str
    json: str
    html: str
    parquet: str


def timestamp(nanoseconds: int) -> Timestamp:
    """Return nanoseconds since 1970 as a message."""
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


class Database:
    """The tables, through one engine; methods that take a session write within the caller's transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.custom = CustomConcepts(engine)
        self.discarded = Discarded(engine)
        self.parts = KeptParts(engine)

    async def migrate(self) -> None:
        """Create what is missing, be it a column of a table that an earlier version made."""
        await tables.migrate(self.engine)

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    @repeated
    async def insert(
        self,
        audit: Audit,
        request_digest: str,
        plan: Plan,
        tenant: str = "",
        quota: Quota = _UNLIMITED,
        traceparent: str = "",
        expected: Sequence[float] | None = None,
    ) -> bool:
        """Insert a tenant's audit with its units and its first event; False if the request id is taken.

        `expected` are the seconds that its units are expected to take, where that is known.

        Raises:
            ExhaustedError: the tenant's quota is used up.
        """
        demand, work = demand_of(plan), work_to_do(plan.works, expected)
        try:
            async with self.engine.begin() as connection:
                # One audit of a tenant at a time is counted and inserted.
                await alone(connection, f"tenant {tenant}")
                # One that is there already, as when a commit's answer was lost, counts itself in the quota.
                same = sa.select(tables.audits.c.id).where(tables.audits.c.request_id == own(tenant, audit.request_id))
                if (await connection.execute(same)).first() is not None:
                    return False
                check_quota(quota, await usage_of(connection, tenant), demand)
                await connection.execute(
                    sa.insert(tables.audits).values(
                        id=audit.id,
                        request_id=own(tenant, audit.request_id),
                        request_digest=request_digest,
                        tenant=tenant,
                        asked_as=audit.request_id,
                        spec=deterministic(plan.spec),
                        concept=deterministic(plan.concept),
                        cases=deterministic(Unit(cases=plan.cases)),
                        state=AUDIT_STATE_PENDING,
                        units_done=0,
                        units_total=len(plan.units),
                        create_time=audit.create_time.ToNanoseconds(),
                        end_time=0,
                        error_reason="",
                        error_message="",
                        last_sequence=0,
                        content_digest="",
                        json_digest="",
                        html_digest="",
                        traceparent=traceparent,
                        cost=deterministic(audit.cost) if audit.HasField("cost") else None,
                        counted_pictures=demand.pictures,
                        counted_bytes=demand.bytes,
                        work=sum(work),
                        work_done=0.0,
                    )
                )
                await insert_all(
                    connection,
                    tables.parts,
                    [
                        {"audit": audit.id, "digest": digest, "message": content}
                        for digest, content in plan.parts.items()
                    ],
                )
                await insert_all(
                    connection,
                    tables.units,
                    [
                        {
                            "audit": audit.id,
                            "unit": unit.id,
                            "position": position,
                            "message": deterministic(unit),
                            "done": False,
                            "pictures": plan.works[position].pictures,
                            "work": work[position],
                        }
                        for position, unit in enumerate(plan.units)
                    ],
                )
                shown = [*plan.concept.picture_digests, *plan.concept.near_miss_digests]
                await self._allow(connection, audit.id, dict.fromkeys(shown, 0))
                await self._append(connection, audit.id, AuditEvent(state_changed=audit))
        except sa.exc.IntegrityError:
            return False
        return True

    async def check(self, tenant: str, quota: Quota, plan: Plan) -> None:
        """Hold an audit against its tenant's quota without inserting it.

        Raises:
            ExhaustedError: the tenant's quota does not suffice.
        """
        async with self.engine.connect() as connection:
            check_quota(quota, await usage_of(connection, tenant), demand_of(plan))

    async def by_request(self, request_id: str, tenant: str = "") -> tuple[Audit, str] | None:
        """Return the audit of a tenant's request id with the digest of its request."""
        query = sa.select(*_SHOWN).where(tables.audits.c.request_id == own(tenant, request_id))
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return (_audit(row), row.request_digest) if row else None

    async def get(self, audit_id: str) -> Audit | None:
        """Return an audit as it is."""
        async with self.engine.connect() as connection:
            return await self._get(connection, audit_id)

    async def owned(self, audit_id: str, tenant: str) -> Audit | None:
        """Return an audit as it is, if it is the tenant's."""
        async with self.engine.connect() as connection:
            query = sa.select(*_SHOWN).where(tables.audits.c.id == audit_id, tables.audits.c.tenant == tenant)
            row = (await connection.execute(query)).first()
        return _audit(row) if row else None

    async def owner(self, audit_id: str) -> tuple[str, int]:
        """Return whose an audit is, and when it was created, in nanoseconds; nobody's once it is deleted."""
        query = sa.select(tables.audits.c.tenant, tables.audits.c.create_time).where(tables.audits.c.id == audit_id)
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return (row.tenant, row.create_time) if row else ("", 0)

    async def newest(self, limit: int, before: tuple[int, str] | None, tenant: str = "") -> list[Audit]:
        """Return a tenant's newest audits, those created before (create time in nanoseconds, id) where given."""
        query = sa.select(*_SHOWN).where(tables.audits.c.tenant == tenant)
        query = query.order_by(tables.audits.c.create_time.desc(), tables.audits.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(sa.tuple_(tables.audits.c.create_time, tables.audits.c.id) < sa.tuple_(*before))
        async with self.engine.connect() as connection:
            return [_audit(row) for row in await connection.execute(query)]

    async def active(self, among: Sequence[str] | None = None) -> list[str]:
        """Return the ids of the audits, or of some of them, that have not ended, the oldest first."""
        query = (
            sa.select(tables.audits.c.id).where(tables.audits.c.state.in_(ACTIVE)).order_by(tables.audits.c.create_time)
        )
        if among is not None:
            query = query.where(tables.audits.c.id.in_(among))
        async with self.engine.connect() as connection:
            return [row.id for row in await connection.execute(query)]

    async def begun(self, audit_id: str) -> tuple[str, int]:
        """Return the traceparent an audit was asked for with, and when that was; empty and 0 once it is deleted."""
        query = sa.select(tables.audits.c.traceparent, tables.audits.c.create_time).where(
            tables.audits.c.id == audit_id
        )
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return (row.traceparent, row.create_time) if row else ("", 0)

    async def oldest_active(self) -> int | None:
        """Return when the oldest audit that has not ended was asked for; None if all have ended."""
        query = sa.select(sa.func.min(tables.audits.c.create_time)).where(tables.audits.c.state.in_(ACTIVE))
        async with self.engine.connect() as connection:
            oldest: int | None = (await connection.execute(query)).scalar()
        return oldest

    async def count(self) -> dict[AuditState.ValueType, int]:
        """Return how many audits there are of each state."""
        query = sa.select(tables.audits.c.state, sa.func.count()).group_by(tables.audits.c.state)
        async with self.engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    async def events(self, audit_id: str, after: int, limit: int) -> list[AuditEvent]:
        """Return the next events after a sequence number."""
        query = (
            sa.select(tables.events.c.message)
            .where(tables.events.c.audit == audit_id, tables.events.c.sequence > after)
            .order_by(tables.events.c.sequence)
            .limit(limit)
        )
        async with self.engine.connect() as connection:
            return [AuditEvent.FromString(row.message) for row in await connection.execute(query)]

    async def sequences(self, audit_ids: Sequence[str]) -> dict[str, int]:
        """Return the last sequence number of those of the audits that there are."""
        found: dict[str, int] = {}
        async with self.engine.connect() as connection:
            for start in range(0, len(audit_ids), _IDS_AT_ONCE):
                some = tables.audits.c.id.in_(audit_ids[start : start + _IDS_AT_ONCE])
                query = sa.select(tables.audits.c.id, tables.audits.c.last_sequence).where(some)
                found |= {row.id: row.last_sequence for row in await connection.execute(query)}
        return found

    async def unit_ids(self, audit_id: str) -> list[str]:
        """Return the ids of an audit's units, in plan order."""
        query = sa.select(tables.units.c.unit).where(tables.units.c.audit == audit_id).order_by(tables.units.c.position)
        async with self.engine.connect() as connection:
            return [row.unit for row in await connection.execute(query)]

    async def unit(self, audit_id: str, unit_id: str) -> tuple[Unit, bool] | None:
        """Return a unit, and whether it is done; None once its audit is deleted."""
        query = sa.select(tables.units.c.message, tables.units.c.done).where(
            tables.units.c.audit == audit_id, tables.units.c.unit == unit_id
        )
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return (Unit.FromString(row.message), row.done) if row else None

    async def observations(self, audit_id: str, units: Sequence[str]) -> list[Observation]:
        """Return what some of an audit's units have observed, in plan order."""
        async with self.engine.connect() as connection:
            found = await self._messages(
                connection, audit_id, tables.observations, tables.observations.c.unit.in_(units)
            )
        return [Observation.FromString(message) for message in found]

    async def evidence(self, audit_id: str) -> Evidence | None:
        """Return everything an audit has found; None once it is deleted."""
        async with self.engine.connect() as connection:
            row = (await connection.execute(sa.select(tables.audits).where(tables.audits.c.id == audit_id))).first()
            if row is None:
                return None
            observations = await self._messages(connection, audit_id, tables.observations)
            findings = await self._messages(connection, audit_id, tables.findings)
        # Tens of thousands of messages, at the end of a large audit: calls are answered meanwhile.
        return await asyncio.to_thread(_evidence, row, observations, findings)

    async def may_read(self, audit_id: str, digest: str) -> bool:
        """Say whether an artefact belongs to an audit."""
        query = sa.select(tables.artifacts.c.digest).where(
            tables.artifacts.c.audit == audit_id, tables.artifacts.c.digest == digest
        )
        async with self.engine.connect() as connection:
            return (await connection.execute(query)).first() is not None

    async def reports(self, audit_id: str) -> Reports | None:
        """Return the digests of an audit's reports; None if it has none."""
        query = sa.select(*tables.REPORTS).where(tables.audits.c.id == audit_id, tables.audits.c.json_digest != "")
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return Reports(*row) if row else None

    @repeated
    async def replace_reports(self, audit_id: str, reports: Reports) -> None:
        """Let an audit's reports be others, as a later version renders them."""
        statement = sa.update(tables.audits).where(tables.audits.c.id == audit_id, tables.audits.c.json_digest != "")
        digests = {"json": reports.json, "html": reports.html, "parquet": reports.parquet}
        values = {f"{form}_digest": digest for form, digest in digests.items()}
        async with self.engine.begin() as connection:
            await connection.execute(statement.values(**values))

    @repeated
    async def delete(self, audit_id: str) -> bool:
        """Delete an audit that has ended, with everything that hangs on it; False if it has not, or is not there."""
        ended = sa.and_(tables.audits.c.id == audit_id, tables.audits.c.state.in_(ENDED))
        named = sa.select(tables.artifacts.c.digest).where(tables.artifacts.c.audit == audit_id)
        async with self.engine.begin() as connection:
            row = (await connection.execute(sa.select(*tables.REPORTS).where(ended))).first()
            if row is None:
                return False
            digests = {each.digest for each in await connection.execute(named)} | {digest for digest in row if digest}
            gone = (await connection.execute(sa.delete(tables.audits).where(ended).returning(*SPENT))).first()
            if gone is None:
                return False
            await keep_spent(connection, gone)
            await discard(connection, digests)
        return True

    async def ended_before(self, time_ns: int) -> list[str]:
        """Return the audits that ended before a time, in nanoseconds since 1970."""
        query = sa.select(tables.audits.c.id).where(
            tables.audits.c.state.in_(ENDED), tables.audits.c.end_time < time_ns
        )
        async with self.engine.connect() as connection:
            return [row.id for row in await connection.execute(query)]

    async def progress(self, audit_id: str, event: AuditEvent) -> None:
        """Append an event of a unit on its way.

        Raises:
            AuditEndedError: the audit does not run any more.
        """
        async with self.engine.begin() as connection:
            await self._append(connection, audit_id, event)

    @repeated
    async def cancel(self, audit_id: str) -> bool:
        """Cancel an audit; False if it has ended or does not exist."""
        async with self.engine.begin() as connection:
            return await self._end(connection, audit_id, AUDIT_STATE_CANCELLED)

    async def fail(self, session: AsyncSession, audit_id: str, reason: str, message: str) -> bool:
        """Let an audit fail; False if it has ended or does not exist."""
        connection = await session.connection()
        # Whatever it says, an audit that could not even fail would begin again and again.
        told = {"error_reason": _storable(reason)[:_REASON], "error_message": _storable(message)}
        return await self._end(connection, audit_id, AUDIT_STATE_FAILED, **told)

    async def start(self, session: AsyncSession, audit_id: str) -> bool:
        """Let a pending audit run; False if it is not pending."""
        connection = await session.connection()
        return await self._change(connection, audit_id, (AUDIT_STATE_PENDING,), state=AUDIT_STATE_RUNNING)

    async def succeed(self, session: AsyncSession, audit_id: str, end: int, verdict: Verdict, reports: Reports) -> bool:
        """Record the verdict and the reports; False if the audit has ended or does not exist."""
        connection = await session.connection()
        return await self._change(
            connection,
            audit_id,
            (AUDIT_STATE_RUNNING,),
            state=AUDIT_STATE_SUCCEEDED,
            end_time=end,
            verdict=deterministic(verdict),
            content_digest=reports.content,
            json_digest=reports.json,
            html_digest=reports.html,
            parquet_digest=reports.parquet,
        )

    async def record(
        self,
        session: AsyncSession,
        audit_id: str,
        done: UnitDone,
        observations: Sequence[Observation],
        findings: Sequence[Finding],
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> bool:
        """Record what a unit found, with its pictures' sizes in bytes by digest.

        False if that was done before, or if the audit does not run any more.
        """
        connection = await session.connection()
        await alone(connection, f"unit {audit_id} {done.unit}")
        of_unit = sa.and_(tables.units.c.audit == audit_id, tables.units.c.unit == done.unit)
        planned = sa.select(tables.units.c.done, tables.units.c.pictures, tables.units.c.work).where(of_unit)
        row = (await connection.execute(planned)).first()
        if row is None or row.done:
            return False
        pictures = {observation.picture_digest for observation in observations if observation.picture_digest}
        # Known pictures that were looked at were not made.
        made = len(pictures) if row.pictures is None else min(len(pictures), row.pictures)
        if not await self._change(
            connection,
            audit_id,
            (AUDIT_STATE_RUNNING,),
            event=AuditEvent(unit_done=done),
            units_done=tables.audits.c.units_done + 1,
            pictures=tables.audits.c.pictures + made,
            work_done=tables.audits.c.work_done + (row.work or 0.0),
        ):
            return False
        await connection.execute(sa.update(tables.units).where(of_unit).values(done=True))
        for table, messages in ((tables.observations, observations), (tables.findings, findings)):
            rows = [
                {"audit": audit_id, "unit": done.unit, "ordinal": ordinal, "message": deterministic(message)}
                for ordinal, message in enumerate(messages)
            ]
            await insert_all(connection, table, rows)
        await self._allow(connection, audit_id, {digest: sizes.get(digest, 0) for digest in pictures})
        return True

    async def _end(
        self, connection: AsyncConnection, audit_id: str, state: AuditState.ValueType, **values: Any
    ) -> bool:
        return await self._change(connection, audit_id, ACTIVE, state=state, end_time=time.time_ns(), **values)

    async def _change(
        self,
        connection: AsyncConnection,
        audit_id: str,
        states: Sequence[AuditState.ValueType],
        *,
        event: AuditEvent | None = None,
        **values: Any,
    ) -> bool:
        """Change an audit that is in one of `states`, with an event: `event`, or the audit as it then is."""
        statement = (
            sa.update(tables.audits)
            .where(tables.audits.c.id == audit_id, tables.audits.c.state.in_(states))
            .values(**values)
        )
        if (await connection.execute(statement)).rowcount == 0:
            return False
        if event is None:
            event = AuditEvent(state_changed=await self._get(connection, audit_id))
        await self._append(connection, audit_id, event, states=None)
        return True

    async def _append(
        self,
        connection: AsyncConnection,
        audit_id: str,
        event: AuditEvent,
        states: Sequence[AuditState.ValueType] | None = ACTIVE,
    ) -> None:
        take = sa.update(tables.audits).where(tables.audits.c.id == audit_id)
        if states is not None:
            take = take.where(tables.audits.c.state.in_(states))
        take = take.values(last_sequence=tables.audits.c.last_sequence + 1)
        row = (await connection.execute(take.returning(tables.audits.c.last_sequence))).first()
        if row is None:
            raise AuditEndedError(audit_id)
        event.sequence = row.last_sequence
        event.time.FromNanoseconds(time.time_ns())
        await connection.execute(
            sa.insert(tables.events).values(audit=audit_id, sequence=event.sequence, message=deterministic(event))
        )

    async def _get(self, connection: AsyncConnection, audit_id: str) -> Audit | None:
        row = (await connection.execute(sa.select(*_SHOWN).where(tables.audits.c.id == audit_id))).first()
        return _audit(row) if row else None

    async def _messages(
        self, connection: AsyncConnection, audit_id: str, table: sa.Table, *which: sa.ColumnElement[bool]
    ) -> list[bytes]:
        query = (
            sa.select(table.c.message)
            .join(tables.units, sa.and_(tables.units.c.audit == table.c.audit, tables.units.c.unit == table.c.unit))
            .where(table.c.audit == audit_id, *which)
            .order_by(tables.units.c.position, table.c.ordinal)
        )
        return [row.message for row in await connection.execute(query)]

    async def _allow(self, connection: AsyncConnection, audit_id: str, sizes: Mapping[str, int]) -> None:
        query = sa.select(tables.artifacts.c.digest).where(tables.artifacts.c.audit == audit_id)
        known = {row.digest for row in await connection.execute(query)}
        rows = [
            {"audit": audit_id, "digest": digest, "size_bytes": sizes[digest]} for digest in sorted(set(sizes) - known)
        ]
        await insert_all(connection, tables.artifacts, rows)


def _storable(text: str) -> str:
    """Return text as a column takes it: PostgreSQL's has no zeros, and nobody's has half a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _evidence(row: Any, observations: Sequence[bytes], findings: Sequence[bytes]) -> Evidence:
    return Evidence(
        _audit(row),
        Concept.FromString(row.concept),
        list(Unit.FromString(row.cases).cases),
        [Observation.FromString(message) for message in observations],
        [Finding.FromString(message) for message in findings],
    )


def demand_of(plan: Plan) -> Demand:
    """Return what a planned audit takes of its tenant's quota."""
    return Demand(plan.cost.pictures, picture_bytes(plan.cost.pictures, plan.resolution))


def _audit(row: Any) -> Audit:
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
    )
    if row.cost is not None:
        audit.cost.CopyFrom(AuditCost.FromString(row.cost))
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
