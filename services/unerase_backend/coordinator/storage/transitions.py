"""Changes the state of an audit, together with everything that is written in the same transaction.

Only this module changes states. An audit's row decides its state. Every write to an audit in flight first takes the
next sequence number from that row, and only if the audit has not ended: a unit that ends after its audit was cancelled
finds no row and writes nothing. Sequence numbers have no gaps, because a transaction that fails takes none.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import sqlalchemy as sa
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
from unerase_backend.coordinator.states import ACTIVE, ENDED
from unerase_backend.coordinator.storage import tables, webhooks
from unerase_backend.coordinator.storage.artifact_collection import discard
from unerase_backend.coordinator.storage.audits import NOBODY, Origin, read_audit
from unerase_backend.coordinator.storage.engine import Engine, Within, alone, insert_all, nothing_more
from unerase_backend.coordinator.storage.estimates import work_to_do
from unerase_backend.coordinator.storage.evidence import Reports
from unerase_backend.coordinator.storage.models import NamedDefinition, definitions_of, keep_models
from unerase_backend.coordinator.storage.quotas import SPENT, Demand, check_quota, keep_spent, usage_of
from unerase_backend.coordinator.storage.tables import MAX_REASON, deterministic, own, storable
from unerase_backend.coordinator.storage.write_retry import repeated
from unerase_backend.evaluation.cost import Work
from unerase_backend.runtime.access import Quota

_UNLIMITED = Quota()


class AuditEndedError(Exception):
    """The audit has ended or was deleted, so nothing more can be written to it."""


class PlannedAudit(Protocol):
    """What storage needs of a plan (`planning/plan.py`)."""

    @property
    def spec(self) -> AuditSpec:
        """Return the request with every default filled in."""

    @property
    def concept(self) -> Concept:
        """Return the concept as it is when the audit is planned."""

    @property
    def placebo_pictures(self) -> Sequence[str]:
        """Return the digests of pictures of custom placebos."""

    @property
    def cases(self) -> Sequence[Case]:
        """Return the cases."""

    @property
    def units(self) -> Sequence[Unit]:
        """Return the units, in the order in which they start."""

    @property
    def parts(self) -> Mapping[str, bytes]:
        """Return the parts that units share, by digest."""

    @property
    def works(self) -> Sequence[Work]:
        """Return the work of each unit."""

    @property
    def cost(self) -> AuditCost:
        """Return the cost of the audit."""

    @property
    def models(self) -> Sequence[NamedDefinition]:
        """Return the registered models of the audit, bases included."""

    @property
    def picture_bytes(self) -> int:
        """Return about how many bytes the audit's pictures will take."""


class Transitions:
    """Changes the states of audits; methods that take a session write within the caller's transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @repeated
    async def insert(
        self,
        audit: Audit,
        request_digest: str,
        plan: PlannedAudit,
        origin: Origin = NOBODY,
        quota: Quota = _UNLIMITED,
        expected: Sequence[float] | None = None,
        within: Within = nothing_more,
    ) -> bool:
        """Insert an audit with its units and its first event; False if the request id is taken.

        `expected` holds the expected seconds of each unit, if they are known. `within` writes more in the same
        transaction.

        Raises:
            ExhaustedError: the tenant's quota does not allow the audit.
        """
        tenant, work = origin.tenant, work_to_do(plan.works, expected)
        row = _row(audit, request_digest, plan, origin) | {"work": sum(work)}
        try:
            async with self._engine.begin() as connection:
                # Only one audit of a tenant at a time is checked and inserted.
                await alone(connection, f"tenant {tenant}")
                # If the audit is there already, as after a commit whose answer was lost, the quota already counts it.
                same = sa.select(tables.audits.c.id).where(tables.audits.c.request_id == row["request_id"])
                if (await connection.execute(same)).first() is not None:
                    return False
                check_quota(quota, await usage_of(connection, tenant), demand_of(plan))
                await connection.execute(sa.insert(tables.audits).values(row))
                labels = [{"audit": audit.id, "key": key, "value": value} for key, value in audit.labels.items()]
                await insert_all(connection, tables.audit_labels, labels)
                await self._insert_units(connection, audit.id, plan, work)
                shown = [*plan.concept.picture_digests, *plan.concept.near_miss_digests, *plan.placebo_pictures]
                await _allow(connection, audit.id, dict.fromkeys(shown, 0))
                await self._append(connection, audit.id, AuditEvent(state_changed=_told(audit, origin.sealed)))
                await within(connection)
        except sa.exc.IntegrityError:
            return False
        return True

    async def _insert_units(
        self, connection: AsyncConnection, audit_id: str, plan: PlannedAudit, work: Sequence[float]
    ) -> None:
        parts = [{"audit": audit_id, "digest": digest, "message": content} for digest, content in plan.parts.items()]
        await insert_all(connection, tables.parts, parts)
        await keep_models(connection, audit_id, plan.models)
        units = [
            {
                "audit": audit_id,
                "unit": unit.id,
                "position": position,
                "message": deterministic(unit),
                "done": False,
                "pictures": plan.works[position].pictures,
                "work": work[position],
            }
            for position, unit in enumerate(plan.units)
        ]
        await insert_all(connection, tables.units, units)

    async def check(self, tenant: str, quota: Quota, plan: PlannedAudit) -> None:
        """Check an audit against its tenant's quota without inserting it.

        Raises:
            ExhaustedError: the tenant's quota does not allow the audit.
        """
        async with self._engine.connect() as connection:
            check_quota(quota, await usage_of(connection, tenant), demand_of(plan))

    async def start(self, session: AsyncSession, audit_id: str) -> bool:
        """Change a pending audit to running; False if it is not pending."""
        connection = await session.connection()
        return await self._change(connection, audit_id, (AUDIT_STATE_PENDING,), state=AUDIT_STATE_RUNNING)

    async def succeed(self, session: AsyncSession, audit_id: str, end: int, verdict: Verdict, reports: Reports) -> bool:
        """End an audit with its verdict and reports; False if it has ended before or does not exist."""
        connection = await session.connection()
        return await self._change(
            connection,
            audit_id,
            (AUDIT_STATE_RUNNING,),
            state=AUDIT_STATE_SUCCEEDED,
            end_time=end,
            verdict=deterministic(verdict),
            conclusion=verdict.conclusion,
            content_digest=reports.content,
            json_digest=reports.json,
            html_digest=reports.html,
            parquet_digest=reports.parquet,
            comparability_digest=reports.comparability,
            subject_digest=reports.subject,
        )

    async def fail(self, session: AsyncSession, audit_id: str, reason: str, message: str) -> bool:
        """End an audit with an error; False if it has ended before or does not exist."""
        connection = await session.connection()
        # The text must fit whatever it is: an audit whose failure cannot be recorded would begin again and again.
        told = {"error_reason": storable(reason)[:MAX_REASON], "error_message": storable(message)}
        return await self._end(connection, audit_id, AUDIT_STATE_FAILED, **told)

    @repeated
    async def cancel(self, audit_id: str) -> bool:
        """Cancel an audit; False if it has ended before or does not exist."""
        async with self._engine.begin() as connection:
            return await self.cancel_within(connection, audit_id)

    async def cancel_within(self, connection: AsyncConnection, audit_id: str) -> bool:
        """As `cancel`, within the caller's transaction."""
        return await self._end(connection, audit_id, AUDIT_STATE_CANCELLED)

    async def progress(self, audit_id: str, event: AuditEvent) -> None:
        """Append an event about a unit in progress.

        Raises:
            AuditEndedError: the audit is no longer in flight.
        """
        async with self._engine.begin() as connection:
            await self._append(connection, audit_id, event)

    async def record(
        self,
        session: AsyncSession,
        audit_id: str,
        done: UnitDone,
        observations: Sequence[Observation],
        findings: Sequence[Finding],
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> bool:
        """Record the result of a unit, with the sizes of its pictures in bytes by digest.

        False if it was recorded before, or if the audit is no longer running.
        """
        connection = await session.connection()
        await alone(connection, f"unit {audit_id} {done.unit}")
        of_unit = sa.and_(tables.units.c.audit == audit_id, tables.units.c.unit == done.unit)
        planned = sa.select(tables.units.c.done, tables.units.c.pictures, tables.units.c.work).where(of_unit)
        row = (await connection.execute(planned)).first()
        if row is None or row.done:
            return False
        pictures = {observation.picture_digest for observation in observations if observation.picture_digest}
        # Observations may name pictures that existed before; only those that the unit made count.
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
        await _allow(connection, audit_id, {digest: sizes.get(digest, 0) for digest in pictures})
        return True

    @repeated
    async def delete(self, audit_id: str) -> bool:
        """Delete an audit that has ended, and everything that belongs to it; False if there is no such audit."""
        ended = sa.and_(tables.audits.c.id == audit_id, tables.audits.c.state.in_(ENDED))
        shown = sa.select(tables.artifacts.c.digest).where(tables.artifacts.c.audit == audit_id)
        named = shown.union(definitions_of(audit_id))
        async with self._engine.begin() as connection:
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
        """Change an audit that is in one of `states`, and append `event`, or by default one with the changed audit."""
        statement = (
            sa.update(tables.audits)
            .where(tables.audits.c.id == audit_id, tables.audits.c.state.in_(states))
            .values(**values)
        )
        if (await connection.execute(statement)).rowcount == 0:
            return False
        if event is None:
            sealed = sa.select(tables.audits.c.sealed).where(tables.audits.c.id == audit_id)
            audit = await read_audit(connection, audit_id)
            event = AuditEvent(state_changed=_told(audit, bool((await connection.execute(sealed)).scalar())))
            if audit is not None and audit.state in ENDED:
                await webhooks.ended(connection, webhooks.AUDIT, audit_id, partial(webhooks.audit_body, audit))
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


def _told(audit: Audit | None, sealed: bool) -> Audit | None:
    """Return an audit as its events show it: without a seed base that was drawn for a campaign."""
    if audit is None or not sealed:
        return audit
    told = Audit()
    told.CopyFrom(audit)
    told.spec.ClearField("seed_base")
    return told


async def _allow(connection: AsyncConnection, audit_id: str, sizes: Mapping[str, int]) -> None:
    query = sa.select(tables.artifacts.c.digest).where(tables.artifacts.c.audit == audit_id)
    known = {row.digest for row in await connection.execute(query)}
    rows = [{"audit": audit_id, "digest": digest, "size_bytes": sizes[digest]} for digest in sorted(set(sizes) - known)]
    await insert_all(connection, tables.artifacts, rows)


def _row(audit: Audit, request_digest: str, plan: PlannedAudit, origin: Origin) -> dict[str, Any]:
    """Return the row of a new audit."""
    demand = demand_of(plan)
    return {
        "id": audit.id,
        "request_id": own(origin.tenant, audit.request_id),
        "request_digest": request_digest,
        "tenant": origin.tenant,
        "asked_as": audit.request_id,
        "spec": deterministic(plan.spec),
        "concept": deterministic(plan.concept),
        "cases": deterministic(Unit(cases=plan.cases)),
        "state": AUDIT_STATE_PENDING,
        "units_done": 0,
        "units_total": len(plan.units),
        "create_time": audit.create_time.ToNanoseconds(),
        "end_time": 0,
        "error_reason": "",
        "error_message": "",
        "last_sequence": 0,
        "content_digest": "",
        "json_digest": "",
        "html_digest": "",
        "traceparent": origin.traceparent,
        "campaign": origin.campaign,
        "sealed": origin.sealed,
        "cost": deterministic(audit.cost) if audit.HasField("cost") else None,
        "notes": deterministic(Audit(notes=audit.notes, labels=audit.labels)) or None,
        "counted_pictures": demand.pictures,
        "counted_bytes": demand.bytes,
        "work_done": 0.0,
        "subject": plan.spec.subject,
        "concept_name": plan.spec.concept,
    }


def demand_of(plan: PlannedAudit) -> Demand:
    """Return what a planned audit takes of its tenant's quota."""
    return Demand(plan.cost.pictures, plan.picture_bytes)
