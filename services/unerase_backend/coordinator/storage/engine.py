"""SQLAlchemy engines for SQLite, in write-ahead mode, and PostgreSQL; creation and migration of the tables."""

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

import psycopg
import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from unerase_backend.coordinator.storage.errors import is_full, is_repeated_by_dbos, is_transient
from unerase_backend.coordinator.storage.fill import fill
from unerase_backend.coordinator.storage.sqlite_connection import open_sqlite
from unerase_backend.coordinator.storage.tables import METADATA, discarded

IDS_AT_ONCE = 1000
"""How many ids one statement may ask for: SQLite takes some thousand parameters."""

# PostgreSQL takes some ten thousand parameters in one statement.
_ROWS_AT_ONCE = 1000
# How long to wait for a connection of the pool, and for one of the server.
_POOL_SECONDS = 30.0
_CONNECT_SECONDS = 10


Within = Callable[[AsyncConnection], Awaitable[None]]
"""What is written within a transaction that somebody else begins."""


async def nothing_more(connection: AsyncConnection) -> None:
    """Write nothing."""


class Engine(Protocol):
    """SQLAlchemy's `AsyncEngine`, or `Connections`, where callers wait in a fair queue."""

    @property
    def dialect(self) -> sa.Dialect:
        """Return the dialect, which tells SQLite from PostgreSQL."""

    def connect(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Read within one connection."""

    def begin(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Write within one transaction."""

    async def dispose(self) -> None:
        """Close every connection."""


class _Pool(AsyncAdaptedQueuePool):
    """A pool that raises a database error when it has no free connection.

    DBOS repeats a transaction only after database errors, and SQLAlchemy's own timeout is none.
    """

    def _do_get(self) -> sa.pool.ConnectionPoolEntry:
        try:
            return super()._do_get()
        except sa.exc.TimeoutError as error:
            # The pool has a dialect once it belongs to an engine.
            dialect: Any = self._dialect
            if dialect.name == "sqlite":
                raise sqlite3.OperationalError(f"database is locked: {error}") from None
            raise psycopg.errors.TooManyConnections(str(error)) from None


def create_engine(url: str, stalled_seconds: float = 15.0, connections: int = 5) -> AsyncEngine:
    """Return an engine for `sqlite+aiosqlite:///FILE` or `postgresql+psycopg://...`.

    PostgreSQL ends a transaction that has been idle for `stalled_seconds`, and frees the locks that others wait for,
    because the transaction's process may have been stopped or cut off. SQLite's locks end with their process.
    """
    options = _options(url)
    if sa.make_url(url).get_backend_name() == "sqlite":
        options["async_creator"] = partial(open_sqlite, sa.make_url(url).database or "")
    engine = create_async_engine(url, poolclass=_Pool, pool_size=connections, **options)
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
        # Replaces connections that were open when the server restarted, before they are used; a file has no server.
        "pool_pre_ping": postgres,
        # Prompts, concepts and names belong in the database, not in a log.
        "hide_parameters": True,
        "connect_args": {"connect_timeout": _CONNECT_SECONDS} if postgres else {},
    }


def _prepare(engine: sa.Engine, stalled_seconds: float) -> None:
    if engine.dialect.name == "sqlite":
        # A writer takes the lock when it begins. Two transactions that first read and then write would deadlock.
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
        # The pool would roll back what is not committed.
        connection.commit()
        if isolation:
            connection.isolation_level = isolation

    # SQLSTATEs that DBOS handles by itself: conflicts, and held locks in its own records.
    known = {"40001"} if engine.dialect.is_async else {"40001", "55P03"}

    @sa_event.listens_for(engine, "handle_error", retval=True)
    def _let_wait(context: sa.ExceptionContext) -> sa.exc.OperationalError | None:
        """Present every transient error as one that DBOS repeats: as a lock (SQLite), or as a lost connection."""
        error = context.original_exception
        if not is_transient(error) or is_repeated_by_dbos(error):
            return None
        if isinstance(error, sqlite3.Error):
            locked = sqlite3.OperationalError(f"database is locked: {error}")
            return sa.exc.OperationalError(None, None, locked, hide_parameters=True)
        state = getattr(error, "sqlstate", None)
        if state not in known:
            context.is_disconnect = True
            # If the server itself reported the error, the other connections are still good, unless it is shutting down.
            context.invalidate_pool_on_disconnect = state is None or state.startswith("57")
        return None


def on_full_disk(engine: sa.Engine, tell: Callable[[], None]) -> None:
    """Call `tell` whenever an error says that the database's disk is full."""

    @sa_event.listens_for(engine, "handle_error")
    def _tell(context: sa.ExceptionContext) -> None:
        if is_full(context.original_exception):
            tell()


async def migrate(engine: Engine) -> None:
    """Create missing tables, and missing columns and indexes of tables that an earlier version created; fill these."""
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await alone(connection, "migrate")
        await connection.run_sync(METADATA.create_all)
        await connection.run_sync(_complete)
        await connection.run_sync(fill)


async def alone(connection: AsyncConnection, what: str) -> None:
    """Wait until no other transaction that called this with the same `what` is under way; call it before any read."""
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(what, 0))))
    else:
        # SQLite takes its lock with the first statement that could write.
        await connection.execute(sa.delete(discarded).where(sa.false()))


async def insert_all(connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, many with one statement.

    Not by `executemany` on PostgreSQL, for which psycopg uses a pipeline: the server does not see a process that stops
    within one as idle. SQLite has no such trouble, and SQLAlchemy takes most of a unit's writes to put many rows into
    one statement.
    """
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        await connection.execute(sa.insert(table), rows)
        return
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        await connection.execute(sa.insert(table).values(rows[begin : begin + _ROWS_AT_ONCE]))


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
