"""The tables of the coordinator's database, and what is the same for everybody who reads or writes them.

SQLite in write-ahead mode by default; PostgreSQL by its URL.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import psycopg
import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy import event as sa_event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from unerase.v1.audits_pb2 import (
    AUDIT_STATE_CANCELLED,
    AUDIT_STATE_FAILED,
    AUDIT_STATE_PENDING,
    AUDIT_STATE_RUNNING,
    AUDIT_STATE_SUCCEEDED,
)
from unerase_backend.coordinator.transient import is_full, is_repeated_by_dbos, is_transient

ACTIVE = (AUDIT_STATE_PENDING, AUDIT_STATE_RUNNING)
ENDED = (AUDIT_STATE_SUCCEEDED, AUDIT_STATE_FAILED, AUDIT_STATE_CANCELLED)

# Both take some ten thousand parameters at once.
_ROWS_AT_ONCE = 1000
# How long to wait for a connection of the pool, and for one of the server.
_POOL_SECONDS = 30.0
_CONNECT_SECONDS = 10

METADATA = sa.MetaData()

audits = sa.Table(
    "unerase_audits",
    METADATA,
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
    # What it was counted to take: a message, and of it what the quotas add up while it is in flight.
    sa.Column("cost", sa.LargeBinary, nullable=True),
    sa.Column("counted_pictures", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("counted_bytes", sa.BigInteger, nullable=False, server_default="0"),
    # Expected work of all its units and of those that are done, in seconds, or in rows where nothing is known of time.
    sa.Column("work", sa.Double, nullable=False, server_default="0"),
    sa.Column("work_done", sa.Double, nullable=False, server_default="0"),
    sa.Index("unerase_audits_by_time", "create_time", "id"),
)


def _audit_key() -> sa.Column[str]:
    return sa.Column("audit", sa.ForeignKey(audits.c.id, ondelete="CASCADE"), primary_key=True)


units = sa.Table(
    "unerase_units",
    METADATA,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False),
    # What it was counted to take; NULL where an earlier version planned it.
    sa.Column("pictures", sa.BigInteger, nullable=True),
    sa.Column("work", sa.Double, nullable=True),
)
# What units of one audit share (`parts.py`).
parts = sa.Table(
    "unerase_parts",
    METADATA,
    _audit_key(),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
# How long units took: sums over the recent ones, by evaluation and reference.
durations = sa.Table(
    "unerase_durations",
    METADATA,
    sa.Column("evaluation", sa.String(200), primary_key=True),
    sa.Column("reference", sa.String(200), primary_key=True),
    sa.Column("units", sa.Double, nullable=False),
    sa.Column("rows", sa.Double, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
)
events = sa.Table(
    "unerase_events",
    METADATA,
    _audit_key(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
observations = sa.Table(
    "unerase_observations",
    METADATA,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
findings = sa.Table(
    "unerase_findings",
    METADATA,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
# The artefacts that a reader of the audit may read.
artifacts = sa.Table(
    "unerase_artifacts",
    METADATA,
    _audit_key(),
    sa.Column("digest", sa.String(64), primary_key=True),
    # 0 where it was not looked at, as with a concept's own pictures.
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("unerase_artifacts_by_digest", "digest"),
)
# Pictures of audits that are deleted: they count for their day, or deleting would give a tenant a new day's quota.
spent = sa.Table(
    "unerase_spent",
    METADATA,
    sa.Column("audit", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(32), nullable=False),
    # That of the audit, in nanoseconds since 1970.
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("pictures", sa.BigInteger, nullable=False),
)
# Artefacts that something has named that is deleted; they are removed unless something else names them.
discarded = sa.Table("unerase_discarded", METADATA, sa.Column("digest", sa.String(64), primary_key=True))

concepts = sa.Table(
    "unerase_concepts",
    METADATA,
    # Of a tenant's concept hashes of tenant and name, or request id: tenants do not meet.
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    sa.Column("tenant", sa.String(32), nullable=False, server_default=""),
    # SHA-256 of the description and the pictures, to tell a repetition from another request.
    sa.Column("request_digest", sa.String(64), nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("side", sa.Integer, nullable=False),
    # The name as it was chosen: a list of names reads no messages, which are large. NULL of an earlier version.
    sa.Column("called", sa.String(100), nullable=True),
    # Nanoseconds since 1970.
    sa.Column("create_time", sa.BigInteger, nullable=False),
)

coordinators = sa.Table(
    "unerase_coordinators",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    # The folder that one coordinator at a time has locked: whoever has the lock knows that its predecessor is dead.
    sa.Column("home", sa.String(64), nullable=False),
    # When its lease runs out, in seconds since 1970.
    sa.Column("expires", sa.Double, nullable=False),
)

REPORTS = (audits.c.content_digest, audits.c.json_digest, audits.c.html_digest, audits.c.parquet_digest)
"""What names an audit's reports in the artefact store."""


class Engine(Protocol):
    """What reads and writes: SQLAlchemy's `AsyncEngine`, or `Connections`, where callers wait for their turn."""

    @property
    def dialect(self) -> sa.Dialect:
        """Return the database's kind."""

    def connect(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Read within one connection."""

    def begin(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Write within one transaction."""

    async def dispose(self) -> None:
        """Close every connection."""


class _Pool(AsyncAdaptedQueuePool):
    """A pool whose having no connection to spare is an error of the database, as it is to whoever repeats those: DBOS
    repeats a transaction that met one, and no other."""

    def _do_get(self) -> sa.pool.ConnectionPoolEntry:
        try:
            return super()._do_get()
        except sa.exc.TimeoutError as error:
            # The engine's, once there is one.
            dialect: Any = self._dialect
            if dialect.name == "sqlite":
                raise sqlite3.OperationalError(f"database is locked: {error}") from None
            raise psycopg.errors.TooManyConnections(str(error)) from None


def create_engine(url: str, stalled_seconds: float = 15.0, connections: int = 5) -> AsyncEngine:
    """Return an engine for `sqlite+aiosqlite:///FILE` or `postgresql+psycopg://...`.

    PostgreSQL ends a transaction whose process has not been heard of for `stalled_seconds`, and with it the locks that
    others wait for: a process may be stopped, or cut off, at any moment. SQLite's locks end with their process.
    """
    engine = create_async_engine(url, poolclass=_Pool, pool_size=connections, **_options(url))
    _prepare(engine.sync_engine, stalled_seconds)
    return engine


def create_workflow_engine(url: str, stalled_seconds: float = 15.0, connections: int = 4) -> sa.Engine:
    """Return DBOS's engine, for `sqlite:///FILE` or `postgresql+psycopg://...`."""
    engine = sa.create_engine(url, pool_size=connections, **_options(url))
    _prepare(engine, stalled_seconds)
    return engine


def _options(url: str) -> dict[str, Any]:
    postgres = sa.make_url(url).get_backend_name() == "postgresql"
    return {
        "max_overflow": 0,
        "pool_timeout": _POOL_SECONDS,
        # Connections that were open when the server restarted are replaced before they are used.
        "pool_pre_ping": True,
        # Prompts, concepts and names belong in the database, and in no log.
        "hide_parameters": True,
        "connect_args": {"connect_timeout": _CONNECT_SECONDS} if postgres else {},
    }


def _prepare(engine: sa.Engine, stalled_seconds: float) -> None:
    if engine.dialect.name == "sqlite":
        # A writer takes the lock when it begins: two that read first and then write would deadlock.
        isolation = "IMMEDIATE"
        settings = [
            f"PRAGMA {pragma}"
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON")
        ]
    else:
        isolation = None
        settings = [f"SET idle_in_transaction_session_timeout = {round(stalled_seconds * 1000)}"]

    @sa_event.listens_for(engine, "connect")
    def _set(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        for setting in settings:
            cursor.execute(setting)
        cursor.close()
        # The pool would undo what is not committed.
        connection.commit()
        if isolation:
            connection.isolation_level = isolation

    # Two that DBOS looks for by itself: conflicts, and in its own records locks that somebody holds.
    known = {"40001"} if engine.dialect.is_async else {"40001", "55P03"}

    @sa_event.listens_for(engine, "handle_error", retval=True)
    def _let_wait(context: sa.ExceptionContext) -> sa.exc.OperationalError | None:
        """Let DBOS repeat whatever passes, for as long as it takes: it knows a lock, and a connection that is lost."""
        error = context.original_exception
        if not is_transient(error) or is_repeated_by_dbos(error):
            return None
        if isinstance(error, sqlite3.Error):
            locked = sqlite3.OperationalError(f"database is locked: {error}")
            return sa.exc.OperationalError(None, None, locked, hide_parameters=True)
        state = getattr(error, "sqlstate", None)
        if state not in known:
            context.is_disconnect = True
            # Where the server itself has spoken, the other connections are as good as before.
            context.invalidate_pool_on_disconnect = state is None or state.startswith("57")
        return None


def on_full_disk(engine: sa.Engine, tell: Callable[[], None]) -> None:
    """Call `tell` whenever the disk of the database is found full."""

    @sa_event.listens_for(engine, "handle_error")
    def _tell(context: sa.ExceptionContext) -> None:
        if is_full(context.original_exception):
            tell()


async def migrate(engine: Engine) -> None:
    """Create what is missing, be it a column or an index of a table that an earlier version made."""
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await alone(connection, "migrate")
        await connection.run_sync(METADATA.create_all)
        await connection.run_sync(_complete)


async def alone(connection: AsyncConnection, what: str) -> None:
    """Wait until no other transaction that asked for the same is under way, before the first row is read."""
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(what, 0))))
    else:
        # SQLite's lock comes with the first statement that could write.
        await connection.execute(sa.delete(discarded).where(sa.false()))


async def insert_all(connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, many with one statement.

    Not by `executemany`, which psycopg makes a pipeline: a process that is stopped within one is not seen to be idle.
    """
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        await connection.execute(sa.insert(table).values(rows[begin : begin + _ROWS_AT_ONCE]))


def deterministic(message: Message) -> bytes:
    """Return a message's bytes, the same for the same message."""
    return message.SerializeToString(deterministic=True)


def own(tenant: str, chosen: str) -> str:
    """Return what stands for a name or id that a tenant chose; a hash, so that no tenant can make another's."""
    return hashlib.sha256(f"{tenant}\0{chosen}".encode()).hexdigest() if tenant else chosen


def _complete(connection: sa.Connection) -> None:
    inspector = sa.inspect(connection)
    for table in METADATA.sorted_tables:
        there = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                described = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {described}"))
        for index in table.indexes:
            index.create(connection, checkfirst=True)
