"""Errors of the database: which of them are transient, and what callers are told.

Code that meets a transient error tries again. This module alone defines which errors are transient:

| what happened | SQLite | PostgreSQL (SQLSTATE) |
| --- | --- | --- |
| no connection of the pool was free in time | `sqlalchemy.exc.TimeoutError`, or the error of `engine.py` | the same |
| the connection or the server is gone | | no SQLSTATE, 08 |
| the server is full, or has too many connections | | 53 (53100 disk, 53200 memory, 53300 connections) |
| the server starts, shuts down, or ended this statement | SQLITE_INTERRUPT | 57 without 57P04, 25P03 |
| another transaction is in conflict | SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PROTOCOL | 40 without 40002, 55P03 |
| a standby that is not yet the primary | | 25006 |
| the disk is full, fails, or is temporarily missing | SQLITE_FULL, _IOERR, _CANTOPEN, _READONLY, _NOMEM | 53100, 58 |

Errors in a statement, a value or the schema are not transient.
"""

import sqlite3

import psycopg
import sqlalchemy as sa

from unerase_backend.runtime.artifacts import STORAGE_FULL
from unerase_backend.runtime.errors import ExhaustedError, UnavailableError, UneraseError

DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
"""The reason that callers and watchers are told."""

# Errors that callers are told as DATABASE_UNAVAILABLE, transient or not.
_DATABASE_ERRORS = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
# After how long a caller may try again.
_FULL_SECONDS = 10.0
_UNAVAILABLE_SECONDS = 5.0

# The words of SQLite and of PostgreSQL.
_FULL = ("disk is full", "No space left on device")
_DISK_FULL = "53100"

_LOCKED = "database is locked"
_SQLITE = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    )
)
_CLASSES = ("08", "40", "53", "57", "58")
_STATES = frozenset(("25006", "25P03", "55P03"))
# A violated deferred constraint and a dropped database: waiting helps with neither.
_LASTING = frozenset(("40002", "57P04"))


def is_transient(error: BaseException) -> bool:
    """Return whether an error of a driver, or SQLAlchemy's error around it, is transient."""
    if isinstance(error, sa.exc.TimeoutError):
        return True
    if isinstance(error, sa.exc.DBAPIError):
        return error.connection_invalidated or (error.orig is not None and is_transient(error.orig))
    if isinstance(error, psycopg.Error):
        return _postgres_passes(error)
    if isinstance(error, sqlite3.Error):
        # The lowest byte of the extended code is the plain code. Errors that `engine.py` makes have no code.
        code = getattr(error, "sqlite_errorcode", None)
        return _LOCKED in str(error) if code is None else code & 0xFF in _SQLITE
    return False


def is_full(error: BaseException) -> bool:
    """Return whether an error of the database, or one that was recorded as such, is due to a full disk."""
    cause = getattr(error, "orig", None) or error
    return getattr(cause, "sqlstate", None) == _DISK_FULL or any(words in str(error) for words in _FULL)


def domain_error(error: Exception) -> UneraseError | None:
    """Return the domain error for an error of the database; None for any other error."""
    if not isinstance(error, _DATABASE_ERRORS) and not is_transient(error):
        return None
    if is_full(error):
        return ExhaustedError(
            "the disk of the backend's database is full; the backend's operator has to make room",
            reason=STORAGE_FULL,
            retry_after_seconds=_FULL_SECONDS,
        )
    return UnavailableError(
        "the database is not available",
        reason=DATABASE_UNAVAILABLE,
        retry_after_seconds=_UNAVAILABLE_SECONDS,
    )


def is_repeated_by_dbos(error: BaseException) -> bool:
    """Return whether DBOS by itself repeats a transaction after a driver's error."""
    if isinstance(error, sqlite3.Error):
        return _LOCKED in str(error)
    state = getattr(error, "sqlstate", None) or ""
    return isinstance(error, psycopg.OperationalError) and (state.startswith(("08", "53")) or state == "40P01")


def _postgres_passes(error: psycopg.Error) -> bool:
    state = error.sqlstate
    if state is None:
        # Without a SQLSTATE the server did not report the error: it cannot be reached.
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state not in _LASTING and (state[:2] in _CLASSES or state in _STATES)
