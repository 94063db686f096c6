"""What is told of an audit's changes: to metrics, to those who watch, to its trace and to the log."""

import asyncio
import logging
import time
from contextvars import Context

from unerase.v1.audits_pb2 import AuditState
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.write_retry import until_answered
from unerase_backend.runtime import tracing
from unerase_backend.runtime.carried import AUDIT

_logger = logging.getLogger(__name__)


class Announcements:
    """Tells of what was committed."""

    def __init__(self, database: Database, metrics: Metrics, notifications: Notifications) -> None:
        self._database = database
        self._metrics = metrics
        self._notifications = notifications
        self._announcing = asyncio.Lock()
        self._counting: asyncio.Task[None] | None = None

    async def announce(self) -> None:
        """Tell metrics and watchers that something was committed; those who say so meanwhile are told of together."""
        if self._counting is None:
            self._counting = asyncio.create_task(self._count(), context=Context())
        # Whoever is cancelled while he waits takes it from nobody else.
        await asyncio.shield(self._counting)

    async def _count(self) -> None:
        async with self._announcing:
            # Whoever commits from now on is not sure to be counted.
            self._counting = None
            try:
                self._metrics.set_audits(await self._database.audits.count())
                oldest = await self._database.audits.oldest_active()
                self._metrics.set_oldest(None if oldest is None else oldest / 1e9)
            except Exception:
                # What was committed is committed, whoever hears of it.
                _logger.warning("the audits could not be counted", exc_info=True)
        await self._notifications.announce()

    async def ended(self, audit_id: str, state: AuditState.ValueType) -> None:
        """Note the end of an audit in metrics, in its trace and in the log."""
        origin = await until_answered(lambda: self._database.audits.origin(audit_id))
        name = AuditState.Name(state).removeprefix("AUDIT_STATE_").lower()
        self._metrics.ended(state, (time.time_ns() - origin.create_time) / 1e9)
        tracing.end_durable(origin.traceparent, audit_id, "audit", origin.create_time, audit=audit_id, state=name)
        AUDIT.set(audit_id)
        _logger.info("the audit has ended: %s", name)
