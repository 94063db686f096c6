"""What the coordinator remembers: audits, their units, events, observations and findings; and custom concepts.

An audit's row is the truth about its state. Whatever is written to an audit in flight first takes the next sequence
number from that row, and does so only while the audit runs: a unit that ends after the audit was cancelled finds no
row and writes nothing. Sequence numbers have no gaps, since a transaction that fails gives its number back.

SQLite in write-ahead mode by default; PostgreSQL by its URL.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import event as sa_event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_CANCELLED,
    AUDIT_STATE_FAILED,
    AUDIT_STATE_PENDING,
    AUDIT_STATE_RUNNING,
    AUDIT_STATE_SUCCEEDED,
    Audit,
    AuditEvent,
    AuditSpec,
    AuditState,
    UnitDone,
)
from unerase.v1.types_pb2 import Case, Concept, Finding, Observation
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.catalogue import CustomConcept
from unerase_backend.coordinator.plan import Plan
from unerase_backend.coordinator.quotas import DAY_SECONDS, Usage, check_quota
from unerase_backend.runtime.access import Quota

ACTIVE = (AUDIT_STATE_PENDING, AUDIT_STATE_RUNNING)
ENDED = (AUDIT_STATE_SUCCEEDED, AUDIT_STATE_FAILED, AUDIT_STATE_CANCELLED)

# As SQLite and PostgreSQL say it.
_FULL = ("disk is full", "No space left on device")
DATABASE_ERRORS = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
"""The database is gone, locked, full, or has no connection to spare; trying again may help."""

# SQLite takes some thousand parameters at once.
_IDS_AT_ONCE = 1000

_metadata = sa.MetaData()

_audits = sa.Table(
    "unerase_audits",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    # Of a tenant's audit a hash of tenant and id, so that tenants may choose the same; the id itself is `asked_as`.
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    # SHA-256 of the request as it came, to tell a repetition from another request.
    sa.Column("request_digest", sa.String(64), nullable=False),
    # Empty where there are no tokens.
    sa.Column("tenant", sa.String(32), nullable=False, server_default=""),
    sa.Column("asked_as", sa.String(64), nullable=False, server_default=""),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("concept", sa.LargeBinary, nullable=False),
    sa.Column("cases", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("units_done", sa.Integer, nullable=False),
    sa.Column("units_total", sa.Integer, nullable=False),
    # Nanoseconds since 1970: the newest audits are listed first.
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("end_time", sa.BigInteger, nullable=False),
    sa.Column("verdict", sa.LargeBinary, nullable=True),
    sa.Column("error_reason", sa.String(64), nullable=False),
    sa.Column("error_message", sa.Text, nullable=False),
    sa.Column("last_sequence", sa.BigInteger, nullable=False),
    # Artefacts: the deterministic bytes of the ReportContent, the two forms of the report, and the observations.
    sa.Column("content_digest", sa.String(64), nullable=False),
    sa.Column("json_digest", sa.String(64), nullable=False),
    sa.Column("html_digest", sa.String(64), nullable=False),
    # Empty for an audit that ended before there was such an export.
    sa.Column("parquet_digest", sa.String(64), nullable=False, server_default=""),
    sa.Column("pictures", sa.BigInteger, nullable=False, server_default="0"),
    # The W3C traceparent of the call that asked for it; empty where nobody traces.
    sa.Column("traceparent", sa.String(64), nullable=False, server_default=""),
    sa.Index("unerase_audits_by_time", "create_time", "id"),
)


def _audit_key() -> sa.Column[str]:
    return sa.Column("audit", sa.ForeignKey(_audits.c.id, ondelete="CASCADE"), primary_key=True)


_units = sa.Table(
    "unerase_units",
    _metadata,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False),
)
_events = sa.Table(
    "unerase_events",
    _metadata,
    _audit_key(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
_observations = sa.Table(
    "unerase_observations",
    _metadata,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
_findings = sa.Table(
    "unerase_findings",
    _metadata,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
# The artefacts that a reader of the audit may read.
_artifacts = sa.Table(
    "unerase_artifacts",
    _metadata,
    _audit_key(),
    sa.Column("digest", sa.String(64), primary_key=True),
    # 0 where it was not looked at, as with a concept's own pictures.
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("unerase_artifacts_by_digest", "digest"),
)
# Artefacts that something has named that is deleted; they are removed unless something else names them.
_discarded = sa.Table("unerase_discarded", _metadata, sa.Column("digest", sa.String(64), primary_key=True))

_concepts = sa.Table(
    "unerase_concepts",
    _metadata,
    # Of a tenant's concept hashes of tenant and name, or request id: tenants do not meet.
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    sa.Column("tenant", sa.String(32), nullable=False, server_default=""),
    # SHA-256 of the description and the pictures, to tell a repetition from another request.
    sa.Column("request_digest", sa.String(64), nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("side", sa.Integer, nullable=False),
    # Nanoseconds since 1970.
    sa.Column("create_time", sa.BigInteger, nullable=False),
)


_REPORTS = (_audits.c.content_digest, _audits.c.json_digest, _audits.c.html_digest, _audits.c.parquet_digest)
_COLLECTED_AT_ONCE = 500
_UNLIMITED = Quota()


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


def is_full(error: Exception) -> bool:
    """Say whether an error of the database, or one that was recorded as such, came of a full disk."""
    return any(words in str(error) for words in _FULL)


def _deterministic(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def timestamp(nanoseconds: int) -> Timestamp:
    """Return nanoseconds since 1970 as a message."""
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def create_engine(url: str) -> AsyncEngine:
    """Return an engine for `sqlite+aiosqlite:///FILE` or `postgresql+psycopg://...`."""
    engine = create_async_engine(url)
    if engine.dialect.name == "sqlite":

        @sa_event.listens_for(engine.sync_engine, "connect")
        def _prepare(connection: Any, _: Any) -> None:
            # A writer takes the lock when it begins: two that read first and then write would deadlock.
            connection.isolation_level = "IMMEDIATE"
            cursor = connection.cursor()
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    return engine


class Database:
    """The tables, through one engine; methods that take a session write within the caller's transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def migrate(self) -> None:
        """Create what is missing, be it a column of a table that an earlier version made."""
        async with self.engine.begin() as connection:
            await connection.run_sync(_metadata.create_all)
            await connection.run_sync(_add_columns)

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    async def insert(
        self,
        audit: Audit,
        request_digest: str,
        plan: Plan,
        tenant: str = "",
        quota: Quota = _UNLIMITED,
        traceparent: str = "",
    ) -> bool:
        """Insert a tenant's audit with its units and its first event; False if the request id is taken.

        Raises:
            ExhaustedError: the tenant's quota is used up.
        """
        try:
            async with self.engine.begin() as connection:
                # One audit of a tenant at a time is counted and inserted.
                await self._alone(connection, f"tenant {tenant}")
                check_quota(quota, await self._usage(connection, tenant))
                await connection.execute(
                    sa.insert(_audits).values(
                        id=audit.id,
                        request_id=_own(tenant, audit.request_id),
                        request_digest=request_digest,
                        tenant=tenant,
                        asked_as=audit.request_id,
                        spec=_deterministic(plan.spec),
                        concept=_deterministic(plan.concept),
                        cases=_deterministic(Unit(cases=plan.cases)),
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
                    )
                )
                await connection.execute(
                    sa.insert(_units),
                    [
                        {
                            "audit": audit.id,
                            "unit": unit.id,
                            "position": position,
                            "message": _deterministic(unit),
                            "done": False,
                        }
                        for position, unit in enumerate(plan.units)
                    ],
                )
                own = [*plan.concept.picture_digests, *plan.concept.near_miss_digests]
                await self._allow(connection, audit.id, dict.fromkeys(own, 0))
                await self._append(connection, audit.id, AuditEvent(state_changed=audit))
        except sa.exc.IntegrityError:
            return False
        return True

    async def by_request(self, request_id: str, tenant: str = "") -> tuple[Audit, str] | None:
        """Return the audit of a tenant's request id with the digest of its request."""
        query = sa.select(_audits).where(_audits.c.request_id == _own(tenant, request_id))
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
            query = sa.select(_audits).where(_audits.c.id == audit_id, _audits.c.tenant == tenant)
            row = (await connection.execute(query)).first()
        return _audit(row) if row else None

    async def owner(self, audit_id: str) -> tuple[str, int]:
        """Return whose an audit is, and when it was created, in nanoseconds; nobody's once it is deleted."""
        query = sa.select(_audits.c.tenant, _audits.c.create_time).where(_audits.c.id == audit_id)
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return (row.tenant, row.create_time) if row else ("", 0)

    async def newest(self, limit: int, before: tuple[int, str] | None, tenant: str = "") -> list[Audit]:
        """Return a tenant's newest audits, those created before (create time in nanoseconds, id) where given."""
        query = sa.select(_audits).where(_audits.c.tenant == tenant)
        query = query.order_by(_audits.c.create_time.desc(), _audits.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(sa.tuple_(_audits.c.create_time, _audits.c.id) < sa.tuple_(*before))
        async with self.engine.connect() as connection:
            return [_audit(row) for row in await connection.execute(query)]

    async def active(self, among: Sequence[str] | None = None) -> list[str]:
        """Return the ids of the audits, or of some of them, that have not ended, the oldest first."""
        query = sa.select(_audits.c.id).where(_audits.c.state.in_(ACTIVE)).order_by(_audits.c.create_time)
        if among is not None:
            query = query.where(_audits.c.id.in_(among))
        async with self.engine.connect() as connection:
            return [row.id for row in await connection.execute(query)]

    async def begun(self, audit_id: str) -> tuple[str, int]:
        """Return the traceparent an audit was asked for with, and when that was; empty and 0 once it is deleted."""
        query = sa.select(_audits.c.traceparent, _audits.c.create_time).where(_audits.c.id == audit_id)
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return (row.traceparent, row.create_time) if row else ("", 0)

    async def oldest_active(self) -> int | None:
        """Return when the oldest audit that has not ended was asked for; None if all have ended."""
        query = sa.select(sa.func.min(_audits.c.create_time)).where(_audits.c.state.in_(ACTIVE))
        async with self.engine.connect() as connection:
            oldest: int | None = (await connection.execute(query)).scalar()
        return oldest

    async def count(self) -> dict[AuditState.ValueType, int]:
        """Return how many audits there are of each state."""
        query = sa.select(_audits.c.state, sa.func.count()).group_by(_audits.c.state)
        async with self.engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    async def events(self, audit_id: str, after: int, limit: int) -> list[AuditEvent]:
        """Return the next events after a sequence number."""
        query = (
            sa.select(_events.c.message)
            .where(_events.c.audit == audit_id, _events.c.sequence > after)
            .order_by(_events.c.sequence)
            .limit(limit)
        )
        async with self.engine.connect() as connection:
            return [AuditEvent.FromString(row.message) for row in await connection.execute(query)]

    async def sequences(self, audit_ids: Sequence[str]) -> dict[str, int]:
        """Return the last sequence number of those of the audits that there are."""
        found: dict[str, int] = {}
        async with self.engine.connect() as connection:
            for start in range(0, len(audit_ids), _IDS_AT_ONCE):
                some = _audits.c.id.in_(audit_ids[start : start + _IDS_AT_ONCE])
                query = sa.select(_audits.c.id, _audits.c.last_sequence).where(some)
                found |= {row.id: row.last_sequence for row in await connection.execute(query)}
        return found

    async def unit_ids(self, audit_id: str) -> list[str]:
        """Return the ids of an audit's units, in plan order."""
        query = sa.select(_units.c.unit).where(_units.c.audit == audit_id).order_by(_units.c.position)
        async with self.engine.connect() as connection:
            return [row.unit for row in await connection.execute(query)]

    async def unit(self, audit_id: str, unit_id: str) -> tuple[Unit, bool] | None:
        """Return a unit, and whether it is done; None once its audit is deleted."""
        query = sa.select(_units.c.message, _units.c.done).where(_units.c.audit == audit_id, _units.c.unit == unit_id)
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return (Unit.FromString(row.message), row.done) if row else None

    async def observations(self, audit_id: str, units: Sequence[str]) -> list[Observation]:
        """Return what some of an audit's units have observed, in plan order."""
        async with self.engine.connect() as connection:
            found = await self._messages(connection, audit_id, _observations, _observations.c.unit.in_(units))
        return [Observation.FromString(message) for message in found]

    async def evidence(self, audit_id: str) -> Evidence | None:
        """Return everything an audit has found; None once it is deleted."""
        async with self.engine.connect() as connection:
            row = (await connection.execute(sa.select(_audits).where(_audits.c.id == audit_id))).first()
            if row is None:
                return None
            observations = await self._messages(connection, audit_id, _observations)
            findings = await self._messages(connection, audit_id, _findings)
        return Evidence(
            _audit(row),
            Concept.FromString(row.concept),
            list(Unit.FromString(row.cases).cases),
            [Observation.FromString(message) for message in observations],
            [Finding.FromString(message) for message in findings],
        )

    async def may_read(self, audit_id: str, digest: str) -> bool:
        """Say whether an artefact belongs to an audit."""
        query = sa.select(_artifacts.c.digest).where(_artifacts.c.audit == audit_id, _artifacts.c.digest == digest)
        async with self.engine.connect() as connection:
            return (await connection.execute(query)).first() is not None

    async def reports(self, audit_id: str) -> Reports | None:
        """Return the digests of an audit's reports; None if it has none."""
        query = sa.select(*_REPORTS).where(_audits.c.id == audit_id, _audits.c.json_digest != "")
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return Reports(*row) if row else None

    async def replace_reports(self, audit_id: str, reports: Reports) -> None:
        """Let an audit's reports be others, as a later version renders them."""
        statement = sa.update(_audits).where(_audits.c.id == audit_id, _audits.c.json_digest != "")
        digests = {"json": reports.json, "html": reports.html, "parquet": reports.parquet}
        values = {f"{form}_digest": digest for form, digest in digests.items()}
        async with self.engine.begin() as connection:
            await connection.execute(statement.values(**values))

    async def delete(self, audit_id: str) -> bool:
        """Delete an audit that has ended, with everything that hangs on it; False if it has not, or is not there."""
        ended = sa.and_(_audits.c.id == audit_id, _audits.c.state.in_(ENDED))
        named = sa.select(_artifacts.c.digest).where(_artifacts.c.audit == audit_id)
        async with self.engine.begin() as connection:
            row = (await connection.execute(sa.select(*_REPORTS).where(ended))).first()
            if row is None:
                return False
            digests = {each.digest for each in await connection.execute(named)} | {digest for digest in row if digest}
            if (await connection.execute(sa.delete(_audits).where(ended))).rowcount == 0:
                return False
            await self._discard(connection, digests)
        return True

    async def ended_before(self, time_ns: int) -> list[str]:
        """Return the audits that ended before a time, in nanoseconds since 1970."""
        query = sa.select(_audits.c.id).where(_audits.c.state.in_(ENDED), _audits.c.end_time < time_ns)
        async with self.engine.connect() as connection:
            return [row.id for row in await connection.execute(query)]

    async def discard(self, digests: Sequence[str]) -> None:
        """Note artefacts for removal; those that something names will stay."""
        for start in range(0, len(digests), _COLLECTED_AT_ONCE):
            async with self.engine.begin() as connection:
                await self._discard(connection, set(digests[start : start + _COLLECTED_AT_ONCE]))

    async def collect(self, remove: Callable[[str], None]) -> int:
        """Take some discarded artefacts, and `remove` those that nothing names; returns how many it took.

        That is within the transaction, so that one that cannot be removed stays noted.
        """
        async with self.engine.begin() as connection:
            await self._alone(connection, "collect")
            query = sa.select(_discarded.c.digest).limit(_COLLECTED_AT_ONCE)
            seen = {row.digest for row in await connection.execute(query)}
            for digest in sorted(seen - await self._named(connection, seen)):
                remove(digest)
            await connection.execute(sa.delete(_discarded).where(_discarded.c.digest.in_(seen)))
        return len(seen)

    async def _discard(self, connection: AsyncConnection, digests: set[str]) -> None:
        noted = sa.select(_discarded.c.digest).where(_discarded.c.digest.in_(digests))
        rows = digests - {row.digest for row in await connection.execute(noted)}
        if rows:
            await connection.execute(sa.insert(_discarded), [{"digest": digest} for digest in sorted(rows)])

    async def _named(self, connection: AsyncConnection, digests: set[str]) -> set[str]:
        """Return those of the digests that an audit or a concept names."""
        named = {
            row.digest
            for column in (_artifacts.c.digest, *_REPORTS)
            for row in await connection.execute(sa.select(column.label("digest")).where(column.in_(digests)))
        }
        for row in await connection.execute(sa.select(_concepts.c.message)):
            concept = Concept.FromString(row.message)
            named.update((*concept.picture_digests, *concept.near_miss_digests))
        return named & digests

    async def _alone(self, connection: AsyncConnection, what: str) -> None:
        """Wait until no other transaction that asked for the same is under way, before the first row is read."""
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(what, 0))))
        else:
            # SQLite's lock comes with the first statement that could write.
            await connection.execute(sa.delete(_discarded).where(sa.false()))

    async def _usage(self, connection: AsyncConnection, tenant: str) -> Usage:
        day_ago = time.time_ns() - int(DAY_SECONDS * 1e9)
        mine, recent = _audits.c.tenant == tenant, _audits.c.create_time > day_ago
        active = sa.select(sa.func.count()).where(mine, _audits.c.state.in_(ACTIVE))
        pictures = sa.select(
            sa.func.coalesce(sa.func.sum(_audits.c.pictures), 0), sa.func.min(_audits.c.create_time)
        ).where(mine, recent, _audits.c.pictures > 0)
        stored = sa.select(sa.func.coalesce(sa.func.sum(_artifacts.c.size_bytes), 0)).where(
            _artifacts.c.audit.in_(sa.select(_audits.c.id).where(mine))
        )
        made, oldest = (await connection.execute(pictures)).one()
        return Usage(
            audits=int((await connection.execute(active)).scalar_one()),
            pictures=int(made),
            pictures_free_in_seconds=(oldest - day_ago) / 1e9 if oldest else 0.0,
            bytes=int((await connection.execute(stored)).scalar_one()),
        )

    async def insert_concept(
        self, custom: CustomConcept, request_id: str, request_digest: str, tenant: str = ""
    ) -> bool:
        """Insert a tenant's custom concept; False if its name or the request id is taken."""
        statement = sa.insert(_concepts).values(
            name=_own(tenant, custom.concept.name),
            request_id=_own(tenant, request_id),
            request_digest=request_digest,
            tenant=tenant,
            message=_deterministic(custom.concept),
            side=custom.side,
            create_time=time.time_ns(),
        )
        try:
            async with self.engine.begin() as connection:
                await connection.execute(statement)
        except sa.exc.IntegrityError:
            return False
        return True

    async def concept_by_request(self, request_id: str, tenant: str = "") -> tuple[CustomConcept, str] | None:
        """Return the custom concept of a tenant's request id with the digest of its request."""
        async with self.engine.connect() as connection:
            query = sa.select(_concepts).where(_concepts.c.request_id == _own(tenant, request_id))
            row = (await connection.execute(query)).first()
        return (_custom(row), row.request_digest) if row else None

    async def concept_names(self, tenant: str = "") -> list[str]:
        """Return the names of a tenant's custom concepts."""
        query = sa.select(_concepts).where(_concepts.c.tenant == tenant)
        async with self.engine.connect() as connection:
            return [_custom(row).concept.name for row in await connection.execute(query)]

    async def concepts(self, names: Sequence[str], tenant: str = "") -> list[CustomConcept]:
        """Return those of the named concepts that are the tenant's own; what no concept can be called is none."""
        # PostgreSQL takes no text with a zero in it.
        possible = [_own(tenant, name) for name in names if name and "\0" not in name]
        async with self.engine.connect() as connection:
            query = sa.select(_concepts).where(_concepts.c.name.in_(possible), _concepts.c.tenant == tenant)
            return [_custom(row) for row in await connection.execute(query)]

    async def delete_concept(self, name: str, tenant: str = "") -> bool:
        """Delete a tenant's custom concept; False if there is none of this name."""
        if "\0" in name:
            return False
        which = sa.and_(_concepts.c.name == _own(tenant, name), _concepts.c.tenant == tenant)
        async with self.engine.begin() as connection:
            row = (await connection.execute(sa.select(_concepts.c.message).where(which))).first()
            if row is None:
                return False
            concept = Concept.FromString(row.message)
            await connection.execute(sa.delete(_concepts).where(which))
            await self._discard(connection, {*concept.picture_digests, *concept.near_miss_digests})
        return True

    async def progress(self, audit_id: str, event: AuditEvent) -> None:
        """Append an event of a unit on its way.

        Raises:
            AuditEndedError: the audit does not run any more.
        """
        async with self.engine.begin() as connection:
            await self._append(connection, audit_id, event)

    async def cancel(self, audit_id: str) -> bool:
        """Cancel an audit; False if it has ended or does not exist."""
        async with self.engine.begin() as connection:
            return await self._end(connection, audit_id, AUDIT_STATE_CANCELLED)

    async def fail(self, session: AsyncSession, audit_id: str, reason: str, message: str) -> bool:
        """Let an audit fail; False if it has ended or does not exist."""
        connection = await session.connection()
        return await self._end(connection, audit_id, AUDIT_STATE_FAILED, error_reason=reason, error_message=message)

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
            verdict=_deterministic(verdict),
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
        await self._alone(connection, f"unit {audit_id} {done.unit}")
        of_unit = sa.and_(_units.c.audit == audit_id, _units.c.unit == done.unit)
        row = (await connection.execute(sa.select(_units.c.done).where(of_unit))).first()
        if row is None or row.done:
            return False
        if not await self._change(
            connection,
            audit_id,
            (AUDIT_STATE_RUNNING,),
            event=AuditEvent(unit_done=done),
            units_done=_audits.c.units_done + 1,
            pictures=_audits.c.pictures + sum(bool(observation.picture_digest) for observation in observations),
        ):
            return False
        await connection.execute(sa.update(_units).where(of_unit).values(done=True))
        for table, messages in ((_observations, observations), (_findings, findings)):
            rows = [
                {"audit": audit_id, "unit": done.unit, "ordinal": ordinal, "message": _deterministic(message)}
                for ordinal, message in enumerate(messages)
            ]
            if rows:
                await connection.execute(sa.insert(table), rows)
        pictures = {observation.picture_digest for observation in observations if observation.picture_digest}
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
        statement = sa.update(_audits).where(_audits.c.id == audit_id, _audits.c.state.in_(states)).values(**values)
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
        take = sa.update(_audits).where(_audits.c.id == audit_id)
        if states is not None:
            take = take.where(_audits.c.state.in_(states))
        take = take.values(last_sequence=_audits.c.last_sequence + 1)
        row = (await connection.execute(take.returning(_audits.c.last_sequence))).first()
        if row is None:
            raise AuditEndedError(audit_id)
        event.sequence = row.last_sequence
        event.time.FromNanoseconds(time.time_ns())
        await connection.execute(
            sa.insert(_events).values(audit=audit_id, sequence=event.sequence, message=_deterministic(event))
        )

    async def _get(self, connection: AsyncConnection, audit_id: str) -> Audit | None:
        row = (await connection.execute(sa.select(_audits).where(_audits.c.id == audit_id))).first()
        return _audit(row) if row else None

    async def _messages(
        self, connection: AsyncConnection, audit_id: str, table: sa.Table, *which: sa.ColumnElement[bool]
    ) -> list[bytes]:
        query = (
            sa.select(table.c.message)
            .join(_units, sa.and_(_units.c.audit == table.c.audit, _units.c.unit == table.c.unit))
            .where(table.c.audit == audit_id, *which)
            .order_by(_units.c.position, table.c.ordinal)
        )
        return [row.message for row in await connection.execute(query)]

    async def _allow(self, connection: AsyncConnection, audit_id: str, sizes: Mapping[str, int]) -> None:
        query = sa.select(_artifacts.c.digest).where(_artifacts.c.audit == audit_id)
        known = {row.digest for row in await connection.execute(query)}
        rows = [
            {"audit": audit_id, "digest": digest, "size_bytes": sizes[digest]} for digest in sorted(set(sizes) - known)
        ]
        if rows:
            await connection.execute(sa.insert(_artifacts), rows)


def _add_columns(connection: sa.Connection) -> None:
    inspector = sa.inspect(connection)
    for table in _metadata.sorted_tables:
        there = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                described = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {described}"))


def _own(tenant: str, chosen: str) -> str:
    """Return what stands for a name or id that a tenant chose; a hash, so that no tenant can make another's."""
    return hashlib.sha256(f"{tenant}\0{chosen}".encode()).hexdigest() if tenant else chosen


def _custom(row: Any) -> CustomConcept:
    return CustomConcept(Concept.FromString(row.message), row.side)


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
    if row.end_time:
        audit.end_time.CopyFrom(timestamp(row.end_time))
    if row.verdict is not None:
        audit.verdict.ParseFromString(row.verdict)
    return audit
