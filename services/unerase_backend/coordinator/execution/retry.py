"""Repeats work that failed because a room or the database is unavailable or a disk is full, and tells watchers why."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import AuditEvent, Delayed
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.errors import DATABASE_UNAVAILABLE, domain_error, is_transient
from unerase_backend.coordinator.storage.write_retry import until_answered, waits
from unerase_backend.runtime.artifacts import STORAGE_FULL
from unerase_backend.runtime.errors import ExhaustedError, UnavailableError, UneraseError
from unerase_backend.runtime.handles import ReplicaDiedError

_logger = logging.getLogger(__name__)

_CONCLUSION = "conclusion"

Result = TypeVar("Result")


class Retry:
    """Repeats attempts for `seconds` if a room is unavailable or busy.

    If the database is unavailable or a disk is full, it repeats them for ever: the audit's failure could not be
    recorded either.
    """

    def __init__(self, database: Database, metrics: Metrics, notifications: Notifications, seconds: float) -> None:
        self._database = database
        self._metrics = metrics
        self._notifications = notifications
        self._seconds = seconds

    async def persist(
        self, attempt: Callable[[], Awaitable[Result]], audit_id: str, unit: Unit | None = None
    ) -> Result:
        """Return the result of an attempt, repeated with growing waits, for a unit of an audit or for its conclusion.

        Raises:
            AuditEndedError: the audit has ended meanwhile.
            UnavailableError, ExhaustedError: a room was unavailable or busy for too long.
        """
        give_up: float | None = None
        told = ""
        waiting = unit or Unit(evaluation=_CONCLUSION)
        for wait in waits():
            try:
                return await attempt()
            except Exception as raised:
                error = raised if isinstance(raised, UnavailableError | ExhaustedError) else _delay(raised)
                if error is None:
                    raise
                if error.reason not in (STORAGE_FULL, DATABASE_UNAVAILABLE):
                    now = time.monotonic()
                    give_up = now + self._seconds if give_up is None else give_up
                    if now >= give_up:
                        raise
                elif error is raised:
                    self._metrics.full_disk_waits.inc()
                _logger.warning("trying %s again in %.1f s: %s", waiting.evaluation, wait, error.message)
                self._metrics.units.labels(waiting.evaluation, "repeated").inc()
                if error.reason != told:
                    told = error.reason
                    await self._tell(audit_id, waiting, error)
                if isinstance(error, ReplicaDiedError):
                    self._metrics.survived(error.metadata["room"])
            await asyncio.sleep(wait)
        raise AssertionError

    async def ask(self, read: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
        """Return the result of a read, repeated until the database answers."""
        return await until_answered(lambda: read(*arguments))

    async def _tell(self, audit_id: str, waiting: Unit, error: UneraseError) -> None:
        delayed = Delayed(
            unit=waiting.id,
            evaluation=waiting.evaluation if waiting.id else "",
            role=waiting.role,
            reason=error.reason,
            message=error.message,
        )
        try:
            await self._database.transitions.progress(audit_id, AuditEvent(delayed=delayed))
        except Exception as failed:
            if not is_transient(failed):
                raise
            # Watchers are told through the database, which may be what has failed.
            _logger.warning("the delay could not be reported to watchers", exc_info=True)
        await self._notifications.announce()


def _delay(error: Exception) -> UneraseError | None:
    return domain_error(error) if is_transient(error) else None
