"""Announces committed changes of audits: updates the metrics, wakes watchers, and notes an audit's end.

The workflows call `Announcements` after each commit. It passes the change on to `notifications.py`, which finds out
which watched audits have changed.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context

from unerase.v1.audits_pb2 import AuditState
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.write_retry import until_answered
from unerase_backend.runtime import tracing
from unerase_backend.runtime.call_context import AUDIT

_logger = logging.getLogger(__name__)

# Prometheus looks every few seconds; a large campaign commits many times a second.
_COUNT_SECONDS = 1.0


class Announcements:
    """Updates the metrics and wakes watchers after this process has committed something."""

    def __init__(self, database: Database, metrics: Metrics, notifications: Notifications) -> None:
        self._database = database
        self._metrics = metrics
        self._notifications = notifications
        self.listeners: list[Callable[[str], None]] = []
        """Each is called with the id of an audit that has ended."""
        self._counting: asyncio.Task[None] | None = None
        self._uncounted = self._closed = False
        self._counted = -_COUNT_SECONDS

    async def announce(self) -> None:
        """Wake watchers, and see to it that the metrics are updated within a second."""
        self._uncounted = True
        if not self._closed and (self._counting is None or self._counting.done()):
            self._counting = asyncio.create_task(self._count(), context=Context())
        await self._notifications.announce()

    async def close(self) -> None:
        """Update the metrics no more; a count that is under way ends."""
        self._closed = True
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)

    async def _count(self) -> None:
        while self._uncounted:
            await asyncio.sleep(self._counted + _COUNT_SECONDS - time.monotonic())
            # A commit from now on may come too late for this count. Another follows it, so that the last one to end is
            # the last one that began.
            self._uncounted, self._counted = False, time.monotonic()
            try:
                self._metrics.set_audits(await self._database.audits.count())
                oldest = await self._database.audits.oldest_active()
                self._metrics.set_oldest(None if oldest is None else oldest / 1e9)
            except Exception:
                _logger.warning("the audits could not be counted", exc_info=True)

    async def ended(self, audit_id: str, state: AuditState.ValueType) -> None:
        """Note the end of an audit in metrics, in its trace and in the log, and tell those that listen."""
        for tell in self.listeners:
            tell(audit_id)
        origin = await until_answered(lambda: self._database.audits.origin(audit_id))
        name = AuditState.Name(state).removeprefix("AUDIT_STATE_").lower()
        self._metrics.ended(state, (time.time_ns() - origin.create_time) / 1e9)
        tracing.end_durable(origin.traceparent, audit_id, "audit", origin.create_time, audit=audit_id, state=name)
        AUDIT.set(audit_id)
        _logger.info("the audit has ended: %s", name)
