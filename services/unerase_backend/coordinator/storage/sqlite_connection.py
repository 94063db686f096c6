"""A connection to SQLite that does each statement in one step of its thread.

aiosqlite has a thread for each connection, and SQLAlchemy asks it five times for one statement: for a cursor, to
execute, for the rows, to close the cursor and to roll back. Each time two threads wake each other, which takes longer
than the statement. Here the thread is asked once, and not at all to roll back what has not begun.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from sqlite3 import connect
from typing import Any

import aiosqlite

_Parameters = Iterable[Any]


async def open_sqlite(path: str) -> "SqliteConnection":
    """Open a file, and return the connection, as SQLAlchemy's `async_creator` is to do."""
    connection = SqliteConnection(partial(connect, path), iter_chunk_size=64)
    # The interpreter need not wait for it.
    connection._thread.daemon = True
    opened: SqliteConnection = await connection
    return opened


class SqliteConnection(aiosqlite.Connection):
    """aiosqlite's connection, with other cursors."""

    settled = True
    """Everything that the thread was asked for has been done, as far as is known here."""

    async def __aenter__(self) -> "SqliteConnection":
        await super().__aenter__()
        return self

    def __await__(self) -> Any:
        return self._opened().__await__()

    async def _opened(self) -> "SqliteConnection":
        self._thread.start()
        await self._connect()
        return self

    def cursor(self) -> "SqliteCursor":  # type: ignore[override]
        """Return a cursor; the thread need not be asked for it."""
        return SqliteCursor(self)

    async def rollback(self) -> None:
        """Roll back the current transaction, if there can be one."""
        if not self.settled or self.in_transaction:
            await super().rollback()
            self.settled = True

    async def executed(self, many: bool, statement: str, parameters: Any) -> "Executed":
        """Execute a statement, and return what it gave.

        A caller that is cancelled meanwhile does not keep the thread from executing it, so that the connection is no
        longer settled.
        """
        self.settled = False
        try:
            done: Executed = await self._execute(  # type: ignore[no-untyped-call]
                _execute, self._conn, many, statement, parameters
            )
        except Exception:
            self.settled = True
            raise
        self.settled = True
        return done


Executed = tuple[Any, int, int | None, Sequence[Any]]
"""Description, row count, id of the last row, and rows."""


class SqliteCursor:
    """What SQLAlchemy uses of aiosqlite's cursors."""

    description: Any = None
    rowcount = -1
    lastrowid: int | None = None
    arraysize = 1

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._rows: Sequence[Any] = ()

    async def __aenter__(self) -> "SqliteCursor":
        return self

    async def execute(self, statement: str, parameters: _Parameters = ()) -> "SqliteCursor":
        """Execute a statement, and fetch its rows."""
        return await self._run(False, statement, parameters)

    async def executemany(self, statement: str, parameters: Iterable[_Parameters]) -> "SqliteCursor":
        """Execute a statement once for each of the parameters."""
        return await self._run(True, statement, parameters)

    async def _run(self, many: bool, statement: str, parameters: Any) -> "SqliteCursor":
        done = await self._connection.executed(many, statement, parameters)
        self.description, self.rowcount, self.lastrowid, self._rows = done
        return self

    async def fetchall(self) -> Sequence[Any]:
        """Return the rows."""
        return self._rows

    async def close(self) -> None:
        """Do nothing: the thread has closed its cursor."""


def _execute(connection: Any, many: bool, statement: str, parameters: Any) -> Executed:
    cursor = connection.cursor()
    try:
        (cursor.executemany if many else cursor.execute)(statement, parameters)
        rows = cursor.fetchall() if cursor.description else ()
        return cursor.description, cursor.rowcount, cursor.lastrowid, rows
    finally:
        cursor.close()
