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


class Announcements:
    """Updates the metrics and wakes watchers after this process has committed something."""

    def __init__(self, database: Database, metrics: Metrics, notifications: Notifications) -> None:
        self._database = database
        self._metrics = metrics
        self._notifications = notifications
        self.listeners: list[Callable[[str], None]] = []
        """Each is called with the id of an audit that has ended."""
        self._announcing = asyncio.Lock()
        self._counting: asyncio.Task[None] | None = None

    async def announce(self) -> None:
        """Update the metrics and wake watchers; calls that come while an update waits to begin share that update."""
        if self._counting is None:
            self._counting = asyncio.create_task(self._count(), context=Context())
        # Shielded, because other callers may wait for the same update.
        await asyncio.shield(self._counting)

    async def _count(self) -> None:
        async with self._announcing:
            # A commit from now on may come too late for this count, so its caller starts the next one.
            self._counting = None
            try:
                self._metrics.set_audits(await self._database.audits.count())
                oldest = await self._database.audits.oldest_active()
                self._metrics.set_oldest(None if oldest is None else oldest / 1e9)
            except Exception:
                # A failed count must not fail the caller, whose commit has succeeded.
                _logger.warning("the audits could not be counted", exc_info=True)
        await self._notifications.announce()

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
